"""A teacher on a vLLM server gives the numbers of the same teacher in process, as far as its lists reach."""

import pytest
import torch
from transformers import GenerationConfig

from minillm.common.errors import ConfigError, ModelError
from minillm.models import Checkpoint, LanguageModel, ModelPair
from minillm.models.served import without_weights
from minillm.models.vllm import ListedHead, VllmServer, VllmTeacher
from minillm.objectives import Sampled, TopK
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import decode, prepared, with_costs, with_teacher
from minillm.rollout.micro_batch import micro_batches
from tests.helpers import PROMPTS, ROAD_NAMES, ROADS, prompt_batch
from tests.tiny import make_model, make_tokenizer
from tests.vllm_server import serving

ENDS = dict(stop_ids=(0, 4, 9), pad_id=0)


@pytest.fixture(scope="module")
def teacher():
    return LanguageModel(make_model(seed=2)).frozen()


@pytest.fixture(scope="module")
def student():
    return LanguageModel(make_model(seed=1))


@pytest.fixture(scope="module")
def server(teacher):
    with serving(teacher.network, max_logprobs=31) as found:
        yield found


@pytest.fixture(scope="module")
def rollout(student):
    """The teacher sees longer prompts than the student."""
    prompts = prompt_batch(extra=2)
    own = prompt_batch([[3, 3, *row] for row in PROMPTS])
    prompts = type(prompts)(**vars(prompts) | dict(teacher_ids_BP=own.ids_BP, teacher_mask_BP=own.mask_BP))
    return decode(student, None, prompts, seeds=[1, 2, 3], batch_size=2, max_new_tokens=7, **ENDS)


def connected(teacher, *urls, tokenizer=None):
    servers = [VllmServer(url, 0.0, 20.0) for url in urls]
    network = without_weights(teacher.network.config, None, GenerationConfig(eos_token_id=0))
    return VllmTeacher(servers, network, tokenizer or make_tokenizer())


def gradients(student, objective, loss, experience, teacher):
    """Value and gradients of all weights, over micro-batches."""
    student.network.zero_grad()
    total = 0.0
    for micro in micro_batches(experience, max_tokens=30):
        output = micro.loss(loss, objective, student, teacher, experience.response_mask_BR.sum())
        output.loss.backward()
        total += output.loss.item()
    return total, torch.cat([each.grad.flatten() for each in student.network.parameters()])


OBJECTIVES = {
    "top 5": TopK(k=5),
    "forward": TopK(k=3, kind="forward"),
    "long part": TopK(k=4, long_part=True),
    "all tokens": TopK(k=31),
    "sampled": Sampled(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("loss", ROADS, ids=ROAD_NAMES)
def test_values_and_gradients_are_those_of_the_teacher_here(student, teacher, server, rollout, loss, name):
    """Also when the mixture of two servers answers."""
    objective, url = OBJECTIVES[name], server[1]
    listed = connected(teacher, url, url)
    listed.list_tokens(objective.teacher_tokens)
    found = []
    for each in (teacher, listed):
        scored = with_teacher(rollout, each, loss, max_tokens=30)
        scored = with_costs(scored, student, each, objective, loss, max_tokens=30)
        found.append((scored, *gradients(student, objective, loss, prepared(scored, objective), each)))
    (here, value, gradient), (there, listed_value, listed_gradient) = found
    mask = rollout.response_mask_BR
    assert (here.teacher_logprobs_BR - there.teacher_logprobs_BR)[mask].abs().max() < 1e-6
    assert abs(value - listed_value) < 1e-6
    assert (gradient - listed_gradient).abs().max() < 1e-6 < gradient.abs().max()


def test_a_list_is_a_distribution_with_the_mass_of_the_rest():
    """Also with an id that is beyond the shared rows, and where the list has all of the mass."""
    ids = torch.tensor([[3.0, 1.0, 7.0], [2.0, 0.0, -1.0]])
    logprobs = torch.tensor([[0.5, 0.2, 0.1], [1.0, 1e-12, 0.0]]).log()
    probs = ListedHead(5, k=2)(torch.cat([ids, logprobs], dim=-1)).softmax(-1)
    rest = 0.2 / 3
    assert torch.allclose(probs[0], torch.tensor([rest, 0.2, rest, 0.5, rest]) / (1 - 0.1))
    assert probs[1].argmax() == 2 and probs[1].topk(2).values[1] <= 1e-11


def test_what_is_sent(teacher, server, rollout):
    fake, url = server
    listed = connected(teacher, url)
    listed.list_tokens(3)
    fake.requests.clear()
    with_teacher(rollout, listed, LinearLoss(), max_tokens=1000)
    ((path, body),) = fake.requests
    assert path == "/v1/completions" and body.pop("model") == "t"
    rows = sorted(body.pop("prompt"))
    seen = rollout.for_teacher
    mask_BS = torch.cat([seen.prompt_mask_BP, seen.response_mask_BR], dim=1)
    assert rows == sorted(ids_S[mask_S].tolist() for ids_S, mask_S in zip(seen.ids_BS, mask_BS, strict=True))
    neutral = dict(top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    assert body == dict(max_tokens=1, temperature=1, prompt_logprobs=3, **neutral)


def test_what_cannot_be_right_is_refused_at_once(teacher, server, tmp_path):
    """Another vocabulary, another model, too few tokens, logits in the place of log-probs, no server."""
    words = make_tokenizer()
    vocabulary = words.get_vocab()
    swapped = make_tokenizer(extra=("new",))
    url = server[1]
    with pytest.raises(ModelError, match=r"t has another vocabulary: of ids 0 to 31 it makes '', .* ' new'"):
        connected(teacher, url, tokenizer=swapped)
    assert len(vocabulary) == 31
    with serving(teacher.network, name="u") as (_, other), pytest.raises(ModelError, match="serves u; wanted t"):
        connected(teacher, url, other)
    with serving(teacher.network, max_logprobs=4) as (_, small):
        connected(teacher, small).list_tokens(4)
        with pytest.raises(ModelError, match="prompt logprobs of 5, which is greater than max allowed: 4"):
            connected(teacher, small).list_tokens(5)
    for scores in (lambda logits: logits, lambda logits: logits - 50):
        with serving(teacher.network, scores=scores) as (_, wrong):
            for k in (0, 8):
                with pytest.raises(ModelError, match="sends no log-probs: .* --logprobs-mode raw_logprobs"):
                    connected(teacher, wrong).list_tokens(k)
    with pytest.raises(ModelError, match="start a vLLM server"):
        connected(teacher, "http://127.0.0.1:1")
    listed = connected(teacher, url)
    with pytest.raises(ModelError, match="wanted 0.7"):
        listed.head(0.7)
    with pytest.raises(ModelError, match="writes none"):
        listed.hidden(torch.zeros(1, 1, dtype=torch.long))


def test_a_pair_by_its_settings(teacher, server, tmp_path):
    """`source` gives config and tokenizer; no weights are read."""
    for name, each in (("teacher", teacher.network), ("student", make_model(seed=1))):
        each.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "teacher" / "model.safetensors").unlink()
    spec = Checkpoint(source=f"{tmp_path}/teacher", url=server[1], protocol="vllm", patience=0.0)
    pair = ModelPair(f"{tmp_path}/student", spec).load(torch.device("cpu"))
    assert not pair.teacher.exact and pair.teacher.served and pair.teacher_here is None
    assert pair.n_vocab == 31 and pair.teacher.max_length == 511
    with pytest.raises(ConfigError, match="source=None: wanted a hub id, a directory"):
        Checkpoint(url=server[1], protocol="vllm")
    with pytest.raises(ConfigError, match="protocol=vllm without url"):
        Checkpoint(source="a/b", protocol="vllm")
    with pytest.raises(ModelError, match="or protocol=vllm"):
        Checkpoint(url=server[1], patience=0.0).load()
