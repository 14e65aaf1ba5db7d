"""Answers from a vLLM server: of the newest weights, with their log-probs, and with truncated importance weights."""

import math

import pytest
import torch

from minillm.common.errors import ConfigError, ModelError
from minillm.models import LanguageModel, Lora, Pair
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import VllmSampler, answer_logprobs
from tests.helpers import PROMPTS, prompt_batch
from tests.tiny import make_model
from tests.vllm_server import serving

ENDS = dict(stop_ids=(0, 4, 9), pad_id=0)
SEEDS = [11, 12, 13]


@pytest.fixture
def student():
    return LanguageModel(make_model(seed=1))


def pair_of(student, n_vocab=31):
    return Pair(student.network, None, None, n_vocab, ())


@pytest.fixture
def draw(tmp_path, student):
    """Answers of the fake; `options` of it, `settings` of the sampler."""

    def run(settings=None, prompts=None, seeds=SEEDS, n_vocab=31, **options):
        with serving(make_model(seed=5), **options) as (fake, url):  # of other weights
            sampler = VllmSampler(**dict(max_new_tokens=9, batch_size=3, patience=0.0) | (settings or {}), url=url,
                                  directory=str(tmp_path / "weights"))  # fmt: skip
            sampler.begin(pair_of(student, n_vocab))
            rollout = sampler.rollout(student, None, prompts or prompt_batch(extra=1), seeds, **ENDS)
        return rollout, sampler, fake

    return run


def test_answers_of_the_newest_weights(draw, student):
    """Handed over before anything is drawn; one random stream a row; each ends with its first stop token."""
    rollout, sampler, fake = draw()
    paths = [path for path, _ in fake.requests]
    assert paths == [
        "/v1/models",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/reset_prefix_cache",
        *["/v1/completions"] * 3,
    ]
    named = dict(student.network.named_parameters())
    assert all(torch.equal(each, named[name]) for name, each in fake.network.named_parameters())
    own_BR, _ = answer_logprobs(student, rollout, LinearLoss(), max_tokens=100)
    mask = rollout.response_mask_BR
    assert (rollout.student_logprobs_BR - own_BR).abs().max() < 1e-12
    assert (rollout.behaviour_logprobs_BR - own_BR)[mask].abs().max() < 1e-6
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        asked = next(body for path, body in fake.requests if body.get("prompt") == [prompt])
        assert asked["seed"] == seed and asked["ignore_eos"] and asked["stop_token_ids"] == [0, 4, 9]
        answer = rollout.response_ids_BR[row][mask[row]].tolist()
        assert len(answer) == 9 or answer[-1] in (0, 4, 9)
        assert not {0, 4, 9} & set(answer[:-1])
    assert sampler.figures.keys() == {
        "rollout/log_ratio_server", "rollout/log_ratio_server_max", "rollout/weights_cut"
    }  # fmt: skip
    assert sampler.figures["rollout/log_ratio_server_max"] < 1e-6 and sampler.figures["rollout/weights_cut"] == 0


def test_importance_weights_are_truncated(draw):
    """The server's log-probs are off, by e^1 or e^-1: weights q / b of e become 2, those of 1 / e stay."""
    for off, expected in ((-1.0, math.log(2.0)), (1.0, -1.0)):
        rollout, sampler, _ = draw({"tolerance": 1.5}, scores=lambda logits, off=off: logits.log_softmax(-1) + off)
        gap_BR = rollout.student_logprobs_BR - rollout.behaviour_logprobs_BR
        assert (gap_BR[rollout.response_mask_BR] - expected).abs().max() < 1e-6
        assert sampler.figures["rollout/log_ratio_server"] == pytest.approx(-off)
        assert sampler.figures["rollout/weights_cut"] == (1.0 if off < 0 else 0.0)


def test_a_temperature(draw):
    """The server sends the log-probs of the distribution that it draws from."""
    _, sampler, fake = draw({"temperature": 0.7}, scores=lambda logits: (logits / 0.7).log_softmax(-1))
    assert fake.requests[-1][1]["temperature"] == 0.7
    assert sampler.figures["rollout/log_ratio_server_max"] < 1e-6


def test_adapters_are_merged(draw, student):
    Lora(rank=2).onto(student.network, base="x", seed=0)
    with torch.no_grad():
        for name, each in student.network.named_parameters():
            if "lora_B" in name:
                each.normal_()
    _, sampler, _ = draw()
    assert sampler.figures["rollout/log_ratio_server_max"] < 1e-5


def test_what_cannot_be_right_is_refused(draw, student, tmp_path):
    wrong = "its log-probs differ from the student's by .* on [12]?[0-9] tokens; wanted sampler.tolerance=0.05"
    with pytest.raises(ModelError, match=wrong):
        draw({"temperature": 0.5})  # raw log-probs
    with pytest.raises(ModelError, match=wrong):
        draw(scores=lambda logits: logits)
    with pytest.raises(ModelError, match="the server draws from 31 tokens, of which this pair has 30"):
        draw(n_vocab=30)
    with pytest.raises(ModelError, match=r"sampler.url=http.*/v1/completions: status 400: .*length is 15 tokens"):
        draw(max_model_len=15)
    with pytest.raises(ModelError, match=r"sampler.url: the sampler's server .* start a vLLM server"):
        VllmSampler(url="http://127.0.0.1:1", patience=0.0).begin(pair_of(student))
    with pytest.raises(ConfigError, match=r"(?s)alpha=0.2: .* url='x': .* truncate=0.5: .* tolerance=0.0: .*patience"):
        VllmSampler(alpha=0.2, url="x", truncate=0.5, tolerance=0.0, timeout=0.0)
