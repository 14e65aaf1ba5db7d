"""The estimate of memory against tensors that are there."""

import pytest
import torch
from transformers import DynamicCache

from minillm.linear_loss import LinearLoss
from minillm.models import Architecture, LanguageModel, RollingCache
from minillm.modules import OnPolicy, SupervisedStart
from minillm.optim import Optim
from minillm.preflight import Work, estimate
from minillm.preflight import memory as module
from minillm.preflight.memory import activations, kv_cache, weights
from minillm.sampling import Sampler
from tests.conftest import FAMILIES, make_model, make_pair

OPTIONS = dict(longest_prompt=10, block_size=0, precision="32-true", offload=False)


def work(alpha=0.2, **regime):
    sizes = dict(rollouts=8, minibatch_size=4, microbatch_tokens=48, max_steps=4) | regime
    return Work.on_policy(OnPolicy(**sizes), SupervisedStart(), Sampler(alpha=alpha, max_new_tokens=6, batch_size=8))


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_of_a_real_cache(family):
    network = make_model(family, layers=3, dtype=torch.float32)
    cache, prompt = RollingCache(4, 5, 7, refills=True), DynamicCache()
    LanguageModel(network).hidden(torch.tensor([[3, 4, 5, 6, 7]]), prompt)
    cache.admit(prompt, [5])
    there = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    assert kv_cache(Architecture.of(network.config), 4, 5 + 2 * 7, 4) == there


@pytest.mark.parametrize(("family", "tolerance"), [("llama", 0.01), ("mistral", 0.01), ("qwen2", 0.01),
                                                   ("gpt2", 0.15), ("qwen3", 0.15)])  # fmt: skip
def test_activations_are_what_autograd_saves(family, tolerance):
    """In one more layer; embeddings and what is outside of the layers are left out."""
    saved = []
    for layers in (1, 2):
        shape = Architecture(family, layers, 64, 4, 4 if family == "gpt2" else 2, 160, 31, tied=True)
        network = shape.random_model().train()
        for each in network.modules():
            if isinstance(each, torch.nn.Dropout):
                each.p = 0.0
        own, sizes = {each.untyped_storage().data_ptr() for each in network.parameters()}, {}

        def pack(tensor, own=own, sizes=sizes):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor  # kept, so that no two of them share an address

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = LanguageModel(network).hidden(torch.randint(0, 31, (4, 32)))
        assert hidden.requires_grad
        saved.append(sum(sizes.values()))
    assert activations(shape, 4 * 32, 4) / 2 == pytest.approx(saved[1] - saved[0], rel=tolerance)


def test_gradients_and_moments_of_what_is_trained():
    network = make_model(dtype=torch.float32)
    network.get_input_embeddings().weight.requires_grad_(False)
    optimizer = Optim().build(each for each in network.parameters() if each.requires_grad)
    network(torch.tensor([[3, 4, 5]])).logits.sum().backward()
    gradients = sum(each.grad.nbytes for each in network.parameters() if each.grad is not None)
    optimizer.step()
    moments = sum(each.nbytes for state in optimizer.state.values() for each in state.values() if each.dim())
    assert weights(network, trained=True) == gradients == moments / 2
    assert weights(network) == gradients + network.get_input_embeddings().weight.nbytes


def test_the_parts_and_the_peak(monkeypatch):
    monkeypatch.setattr(module, "usable_memory", lambda device: 7.0)
    pair = make_pair(dtype=torch.float32)
    found = estimate(pair, work(), LinearLoss(chunk_mb=None), **OPTIONS)
    student = sum(each.nbytes for each in pair.student.parameters())
    assert found.always == pytest.approx(
        {"student": student / 1e9, "optimizer": 2e-9 * student, "teacher": student / 1e9}
    )
    # Two models of 2 layers, 2 heads of 8; 8 rows of twice the prompt and the answer.
    assert found.rollout["KV cache"] == pytest.approx(2 * 2 * 2 * 2 * 8 * 8 * (2 * 10 + 6) * 4 / 1e9)
    assert found.rollout["teacher's states"] == found.update["teacher's states"] == pytest.approx(8 * 6 * 32 * 4 / 1e9)
    # 48 tokens at a time: seven tensors of logits, and the head's own gradient.
    assert found.update["loss"] == pytest.approx((7 * 48 * 31 * 4 + 31 * 32 * 4) / 1e9)
    parts = [sum(phase.values()) for phase in (found.always, found.rollout, found.update)]
    assert found.total == pytest.approx(parts[0] + max(parts[1:])) and found.usable == 7.0


def test_what_changes_the_estimate():
    pair = make_pair(dtype=torch.float32)
    base = estimate(pair, work(), LinearLoss(), **OPTIONS)
    alone = estimate(pair, work(alpha=0.0), LinearLoss(), **OPTIONS)
    assert alone.rollout["KV cache"] == base.rollout["KV cache"] / 2
    again = estimate(pair, work(teacher_states="recompute"), LinearLoss(), **OPTIONS)
    assert "teacher's states" not in again.rollout | again.update
    large = estimate(pair, work(microbatch_tokens=4096), LinearLoss(), **OPTIONS)
    assert large.update["activations"] == pytest.approx(base.update["activations"] * 4 * 16 / 48)  # all 4 rows at once
    corpus = estimate(pair, work(), LinearLoss(), **OPTIONS | {"block_size": 96})
    assert corpus.update["activations"] == pytest.approx(2 * base.update["activations"])
    small = estimate(pair, work(), LinearLoss(chunk_mb=1e-3), **OPTIONS)
    assert small.update["loss"] == pytest.approx((7 * 1048 + 31 * 32 * 4) / 1e9)
    mixed = estimate(pair, work(), LinearLoss(), **OPTIONS | {"precision": "bf16-mixed"})
    assert mixed.update["activations"] == base.update["activations"] / 2
    assert mixed.update["half-type weights"] == pytest.approx(base.always["student"] / 2)
    assert mixed.rollout["half-type weights"] == pytest.approx(base.always["student"])  # of both models


def test_the_device_has_memory():
    usable = module.usable_memory(torch.device("cpu"))
    assert 0.1 < usable < 1e5
