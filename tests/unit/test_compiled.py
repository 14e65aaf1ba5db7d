"""Passes over whole rows, compiled or not: the same numbers, the causal kernel, no look at positions."""

import pytest
import torch
from transformers import DynamicCache, masking_utils

from minillm.models import LanguageModel
from tests.tiny import make_model


@pytest.mark.slow
def test_compiled_passes_give_the_same_hidden_states():
    network = make_model(dtype=torch.float32)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    eager, compiled = (LanguageModel(network, compile=each).hidden(ids) for each in (False, True))
    torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-4)
    assert all("_orig_mod" not in name for name in network.state_dict())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_pass_over_whole_rows_takes_the_causal_kernel_and_never_looks_for_packed_rows(family, monkeypatch):
    """Compiled or not: a mask would rule the kernel out, and looking makes the host wait for an accelerator."""
    network, masks = make_model(family), []

    def packed(positions):
        raise AssertionError("the positions were looked at")

    def spied(layer):
        return lambda *args, attention_mask=None, **kwargs: masks.append(attention_mask) or layer(*args, **kwargs)

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", packed)
    monkeypatch.setattr(torch, "compile", spied)
    ids = torch.arange(12).view(2, 6)
    hidden = LanguageModel(network, compile=True).hidden(ids)
    assert torch.equal(hidden, LanguageModel(network).hidden(ids)) and masks == [None, None]


def test_decoding_beside_compiled_passes_is_not_compiled(monkeypatch):
    network = make_model()
    monkeypatch.setattr(torch, "compile", lambda layer: lambda *args, **kwargs: pytest.fail("compiled"))
    model = LanguageModel(network, compile=True)
    with model.caching():
        model.hidden(torch.arange(6)[None], DynamicCache())
