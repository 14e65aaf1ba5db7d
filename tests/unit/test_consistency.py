"""Decoding and training as one model: healthy families pass, in float32 and under autocast, and each fault is found."""

import pytest
import torch

from minillm.common.errors import ModelError
from minillm.common.types import PromptBatch
from minillm.data.prompts import pad
from minillm.models import Head, LanguageModel
from minillm.models.gap import LogitGap
from minillm.rollout.consistency import check_consistency
from tests.families import ROWS, SIZES, WINDOW, family_config, family_model, model_of

# Rows of unequal length; the last is longer than every window.
PROMPTS = [[7, 9, 12], [5, 10, 8, 11, 30, 6, 10, 3, 4, 20], [3], list(range(2, 2 + 3 * WINDOW))]


def check(network, half=False, training=True, seeds=(1, 2, 3, 4)):
    ids, mask = pad(PROMPTS, 0, left=True)
    batch = PromptBatch(ids, mask, torch.arange(len(PROMPTS)))
    options = dict(stop_ids=(ROWS + 1,), pad_id=0, max_new_tokens=12, max_tokens=64, training=training)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return check_consistency(LanguageModel(network), batch, seeds=list(seeds), **options)


@pytest.mark.some(8)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("family", SIZES)
def test_healthy_families_pass(family, half):
    found = check(family_model(family), half)
    assert found.tokens == 48 and abs(found.mean) <= found.largest
    assert half or found.largest < 1e-4


@pytest.mark.some(4)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("scale", [1.04, 0.96])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_scale_on_the_logits_of_decoding_is_named(family, scale, half, monkeypatch):
    columns = Head.columns
    monkeypatch.setattr(Head, "columns", lambda self, hidden_BH: columns(self, hidden_BH) * scale)
    with pytest.raises(
        ModelError, match=rf"{family}: decoding and training are two models(.|\n)*slope of the logits {scale:.2f}"
    ):
        check(family_model(family), half)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("family", "dtype", "seed"), [("qwen3_moe", None, 0), ("olmoe", None, 5), ("mixtral", torch.float16, 1)]
)
def test_a_token_that_rounding_sends_to_another_expert_is_no_fault(family, dtype, seed, monkeypatch):
    network = family_model(family, seed=seed, dtype=dtype or torch.float32)
    found = check(network, half=dtype is None, seeds=[0, 1, 2, 3])
    assert found.largest > 0.1
    columns = Head.columns
    monkeypatch.setattr(Head, "columns", lambda self, hidden_BH: columns(self, hidden_BH) * 1.04)
    with pytest.raises(ModelError, match="slope of the logits 1.04"):
        check(network, half=dtype is None, seeds=[0, 1, 2, 3])


def test_verify_finds_that_scale_in_a_half_type(monkeypatch):
    network = family_model("llama", dtype=torch.bfloat16)
    LanguageModel(network).verify()
    columns = Head.columns
    monkeypatch.setattr(Head, "columns", lambda self, hidden_BH: columns(self, hidden_BH) * 1.04)
    with pytest.raises(ModelError, match="llama: logits after a decoding step .* larger or smaller by 0.0"):
        LanguageModel(network).verify()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16-mixed"])
def test_noise_of_the_training_mode_is_named(half):
    network = model_of(family_config("mixtral", router_jitter_noise=0.2), noise=True)
    with pytest.raises(ModelError, match="mixtral: .*noise in the training mode"):
        check(network, half)
    check(network, half, training=False)  # a teacher is never in that mode


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16-mixed"])
def test_a_window_that_decoding_does_not_know_is_found(half, monkeypatch):
    network = family_model("mistral")
    monkeypatch.setattr(LanguageModel, "_plain_mask", lambda model, cache: True)
    with pytest.raises(ModelError, match="mistral: decoding and training are two models.*a window of attention"):
        check(network, half)


def test_the_weights_are_as_they_were_and_so_is_the_mode():
    network = family_model("llama", dtype=torch.bfloat16).train()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    check(network)
    assert network.training and {each.dtype for each in network.parameters()} == {torch.bfloat16}
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())


def test_the_gap_of_two_passes_by_its_definition():
    torch.manual_seed(0)
    other = torch.randn(5, 7, dtype=torch.float64)
    gap = LogitGap.of(1.25 * other + 3, other)
    assert gap.slope == pytest.approx(1.25)
    p, q = other.softmax(-1), (1.25 * other).softmax(-1)
    assert gap.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))
