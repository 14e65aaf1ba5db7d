"""The same code on a GPU: a whole round, with the teacher's body away during updates."""

import pytest
import torch

from minillm.common.types import TrainBatch
from minillm.models import LanguageModel, Pair, language_model, replay
from minillm.objectives import MiniLLM, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import Sampler, decode, prepared
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.start import SupervisedStart
from tests.helpers import PROMPTS, prompt_batch
from tests.tiny import FAMILIES, make_pair


def gradients(device: str, family: str) -> list[torch.Tensor]:
    pair = make_pair(family)
    pair.teacher.network.to(device)
    pair.teacher.offload = True
    pair = Pair(pair.student.to(device), pair.teacher, pair.tokenizer, pair.n_vocab, pair.stop_ids)
    regime = OnPolicy(rollouts=6, minibatch_size=6, inner_epochs=1, max_steps=1, microbatch_tokens=40)
    parts = (
        MiniLLM(),
        Sampler(alpha=0.3, max_new_tokens=12, batch_size=4),
        PretrainLoss(batch_size=4),
        LinearLoss(1e-3),
    )
    module = OnPolicyDistillation(pair, *parts, Optim(), regime, SupervisedStart(), seed=0)
    module.manual_backward = lambda loss: loss.backward()
    experience = prepared(module.rollout(TrainBatch(prompt_batch(PROMPTS * 2).to(device))), module.objective)
    with pair.teacher.body_away():
        at = {each.device.type for each in pair.teacher.body()}
        assert at == {"cpu"} and pair.teacher.head().weight_VH.device.type == device
        module._policy_gradients(experience)
    assert {each.device.type for each in pair.teacher.body()} == {device}
    return [each.grad.cpu() for each in pair.student.parameters()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: runs the round there and on the CPU")
@pytest.mark.parametrize(("family", "tolerance"), [("gpt2", 1e-9), ("llama", 1e-6)])  # rotary angles are in float32
def test_a_round_on_a_gpu_gives_the_gradients_of_the_cpu(family, tolerance):
    for ours, theirs in zip(gradients("cuda", family), gradients("cpu", family), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_same_round_on_the_cpu_has_gradients(family):
    assert all(torch.isfinite(each).all() and each.abs().max() > 0 for each in gradients("cpu", family))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: captures its decoding steps")
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_on_a_gpu_give_the_answers_of_plain_ones(family, monkeypatch, capsys):
    captured, capture = [], language_model.capture
    monkeypatch.setattr(language_model, "capture", lambda *args, **own: captured.append(args) or capture(*args, **own))
    monkeypatch.setattr(replay, "COLUMNS", 8)
    pair = make_pair(family)
    pair.teacher.network.to("cuda")
    prompts = prompt_batch([PROMPTS[row % 3] for row in range(30)]).to("cuda")
    options = dict(stop_ids=(4,), pad_id=0, max_new_tokens=24, batch_size=4, alpha=0.3, seeds=list(range(30)))
    rollouts = []
    for on in (True, False):
        student = LanguageModel(pair.student.to("cuda"))
        student.replay = pair.teacher.replay = on
        rollouts.append(decode(student, pair.teacher, prompts, **options))
        assert student.replay is pair.teacher.replay is on
    # Mistral's sliding window wants masks of its own, so plain steps.
    assert len(captured) > 6 if family != "mistral" else not captured
    ours, plain = rollouts
    assert torch.equal(ours.response_ids_BR, plain.response_ids_BR)
    torch.testing.assert_close(ours.student_logprobs_BR, plain.student_logprobs_BR, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.teacher_hidden_BRH, plain.teacher_hidden_BRH, rtol=0, atol=1e-9)
    assert "CUDA graphs" not in capsys.readouterr().out
