"""Gradient checkpointing: layers really run again, and neither gradients nor rollouts change."""

import pytest
import torch

from minillm.common.errors import ModelError
from minillm.models import LanguageModel, Lora
from minillm.models.pair import recompute_activations
from minillm.rollout import decode
from tests.helpers import PROMPTS, prompt_batch
from tests.tiny import FAMILIES, make_model

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


def student(family, recompute, lora, compile=False):
    network = make_model(family).train()
    if lora:
        Lora(rank=4).onto(network, base="b")
    if recompute:
        recompute_activations(network)
    return LanguageModel(network, compile=compile)


def passes_and_gradients(model):
    """How often the attention of one layer ran in a forward and a backward pass, and the gradients."""
    calls = []
    attention = next(each for name, each in model.network.named_modules() if name.endswith(("attn", "attention")))
    attention.register_forward_hook(lambda *args: calls.append(1))
    (model.hidden(IDS) @ model.head().weight_VH.T).logsumexp(-1).sum().backward()
    return len(calls), {name: p.grad for name, p in model.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_run_again_and_gradients_stay(family, lora):
    once, kept = passes_and_gradients(student(family, False, lora))
    twice, recomputed = passes_and_gradients(student(family, True, lora))
    assert (once, twice) == (1, 2)
    assert max(each.abs().max() for each in kept.values()) > 0
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_in_training_mode_are_the_same_token_for_token(family, lora):
    """In training mode such layers drop the cache; without one each token would see itself alone."""
    options = dict(stop_ids=(0,), pad_id=0, max_new_tokens=8, seeds=[1, 2, 3], batch_size=2)
    plain, recomputing = (
        decode(student(family, recompute, lora), None, prompt_batch(PROMPTS), **options) for recompute in (False, True)
    )
    assert torch.equal(recomputing.response_ids_BR, plain.response_ids_BR)
    torch.testing.assert_close(recomputing.student_logprobs_BR, plain.student_logprobs_BR, rtol=0, atol=1e-12)


def test_decoding_leaves_the_mode_as_it_was():
    model = student("llama", True, False)
    with model.caching():
        assert not model.network.training
    assert model.network.training and model.network.model.layers[0].training


@pytest.mark.slow
def test_a_compiled_pass_has_the_gradients_of_an_eager_one():
    eager, compiled = (passes_and_gradients(student("llama", True, True, compile=each))[1] for each in (False, True))
    for name, gradient in eager.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=0, atol=1e-6)  # rotary angles are float32


def test_a_family_that_cannot_says_so():
    network = make_model()
    network.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="llama: cannot do without activations; set gradient_checkpointing=false"):
        recompute_activations(network)
