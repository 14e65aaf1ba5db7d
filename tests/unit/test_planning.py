"""Sizes without data against the allocator's own account of real tensors, and against hand counts."""

import gc
import weakref

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from minillm.common.types import PromptBatch, Rollout
from minillm.models import Architecture, LanguageModel, RollingCache
from minillm.objectives import MiniLLM, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss, Side
from minillm.parallel import Parallel
from minillm.planning import Blueprint, Case, fake_device, largest, measure
from minillm.rollout import Sampler, decode, prepared
from minillm.rollout.micro_batch import micro_batches
from minillm.train.optim import Optim
from tests.conftest import make_model

FAMILIES = {
    "llama": Architecture("llama", 2, 128, 4, 2, 352, 8192, tied=True),
    "gpt2": Architecture("gpt2", 2, 128, 4, 4, 512, 8192, tied=True),
    "opt": Architecture("opt", 2, 128, 4, 4, 512, 8192, tied=True),
    "untied": Architecture("qwen2", 2, 96, 4, 2, 256, 8192, tied=False),
}


def case_of(shape, teacher=None, **changes):
    prints = [Blueprint(each.config(), torch.float32) for each in (shape, teacher or shape)]
    options = dict(
        objective=MiniLLM(), regulariser=PretrainLoss(coefficient=0.0), linear_loss=LinearLoss(4.0), optim=Optim(),
        sampler=Sampler(alpha=0.2, max_new_tokens=224, batch_size=8), prompt=32, answer=224, block=0, rollouts=16,
        minibatch=16, microbatch_tokens=8 * 255,
    )  # fmt: skip
    return Case(*prints, **options | changes)


def above_the_models(case) -> float:
    """GB of an update that are not there before it."""
    planned = measure(case).update
    return sum(planned.values()) - sum(planned[name] for name in ("student", "teacher", "teacher's states"))


def allocated(function) -> int:
    """The most that the function holds at a time, in bytes, of what it allocates itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    events = [each for each in trace.profiler.kineto_results.events() if each.name() == "[memory]"]
    live = most = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        live += each.nbytes()
        most = max(most, live)
    return most


def real_updates(case, shape):
    """Two optimizer steps of two micro-batches by the package's own functions, as the training module makes them."""
    network = shape.random_model().train()
    model, head = LanguageModel(network), LanguageModel(shape.random_model()).head()
    optimizer = case.optim.build(network.parameters())
    rows, prompt, answer = case.minibatch, case.prompt, case.answer
    ids = torch.randint(1, shape.vocabulary, (rows, prompt + answer))
    mask, values = torch.ones_like(ids, dtype=torch.bool), torch.randn(2, rows, answer)
    parts = (ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:], *values)
    rollout = prepared(
        Rollout(*parts, torch.randn(rows, answer, shape.width), behaviour_logprobs_BR=values[0]), case.objective
    )

    def step():
        normaliser = case.objective.normaliser(rollout.response_mask_BR)
        for micro in micro_batches(rollout, case.microbatch_tokens):
            output = case.linear_loss(
                case.objective,
                micro.side(model),
                Side(micro.take(rollout.teacher_hidden_BRH), head),
                micro.take(rollout.response_ids_BR),
                {name: micro.take(each) for name, each in rollout.constants.items()},
                normaliser=normaliser,
            )
            output.loss.backward()
        case.optim.step(optimizer, case.optim.norm(optimizer), 1e-6)

    return lambda: (step(), step())


@pytest.mark.parametrize(
    "family", ["llama", "opt", *(pytest.param(each, marks=pytest.mark.slow) for each in ("gpt2", "untied"))]
)
def test_an_update_is_what_the_allocator_says(family):
    """8 rows of 255 tokens at a time. Above the loaded models: weights and kept states are there before."""
    case, shape = case_of(FAMILIES[family]), FAMILIES[family]
    assert above_the_models(case) == pytest.approx(allocated(real_updates(case, shape)) / 1e9, rel=0.05)


@pytest.mark.slow
def test_the_plain_loss():
    shape = FAMILIES["llama"]
    case = case_of(shape, linear_loss=LinearLoss(None))
    assert above_the_models(case) == pytest.approx(allocated(real_updates(case, shape)) / 1e9, rel=0.05)


def test_a_rollout_is_what_the_allocator_says():
    shape, teacher = FAMILIES["llama"], FAMILIES["untied"]
    case = case_of(shape, teacher, rollouts=12, minibatch=12, answer=40, prompt=24,
                   sampler=Sampler(alpha=0.2, max_new_tokens=40, batch_size=6))  # fmt: skip
    planned = measure(case).rollout
    models = [LanguageModel(each.random_model()) for each in (shape, teacher)]
    ids = torch.randint(1, 8192, (12, 24))
    mask = torch.arange(24) >= torch.arange(12).unsqueeze(-1) % 3
    prompts = PromptBatch(ids, mask, torch.arange(12))
    options = dict(stop_ids=(8192,), pad_id=0, max_new_tokens=40, seeds=list(range(12)), batch_size=6, alpha=0.2)
    real = allocated(lambda: decode(*models, prompts, **options))
    above = sum(planned.values()) - planned["student"] - planned["teacher"] - planned["optimizer"]
    assert above == pytest.approx(real / 1e9, rel=0.15)


def test_weights_gradients_and_moments_are_counted():
    network = make_model(dtype=torch.float32)
    blueprint = Blueprint(network.config, torch.float32)
    case = case_of(FAMILIES["llama"], minibatch=16)
    case = Case(**vars(case) | dict(student=blueprint, teacher=blueprint))
    planned = measure(case).update
    weights = sum(each.nbytes for each in network.parameters())
    assert planned["student"] * 1e9 == planned["teacher"] * 1e9 == pytest.approx(weights)
    # AdamW has a step count of 4 bytes for each tensor.
    assert planned["optimizer"] * 1e9 == pytest.approx(2 * weights + 4 * len(list(network.parameters())))
    assert planned["gradients"] * 1e9 == pytest.approx(weights)
    assert planned["teacher's states"] * 1e9 == pytest.approx(16 * 224 * 32 * 4)


def test_shards_of_a_fake_group():
    """Of 4 devices each holds a quarter; what is gathered in an update is the root and few layers."""
    shape = Architecture("llama", 6, 128, 4, 4, 384, 512, tied=False)
    whole = measure(case_of(shape, microbatch_tokens=2 * 255, linear_loss=LinearLoss(0.1)))
    parts = measure(case_of(shape, microbatch_tokens=2 * 255, linear_loss=LinearLoss(0.1), layout=Parallel("fsdp", 4)))
    for purpose in ("student", "optimizer", "gradients"):
        assert parts.update[purpose] == pytest.approx(whole.update[purpose] / 4, rel=0.01)
    with fake_device(case_of(shape)) as device:
        sizes = device.updates.sizes["teacher"]
    body, around = 4 * sizes.body / 1e9, 4 * (sizes.parameters - sizes.body) / 1e9
    assert parts.update["teacher"] == pytest.approx(around + body / 4, rel=0.01)
    assert around < parts.update["gathered"] < around + body * 4 / 6
    # In rollouts all of it is gathered: the student, and the teacher's layers, whose embeddings are whole anyway.
    assert parts.rollout["gathered"] == pytest.approx(around + 2 * body, rel=0.01)


def test_half_types_halve_what_is_gathered_of_the_layers_and_late_sums_keep_whole_gradients():
    shape = Architecture("llama", 6, 128, 4, 4, 384, 512, tied=False)
    options = dict(microbatch_tokens=2 * 255, linear_loss=LinearLoss(0.1))
    plain, half, late = (
        measure(case_of(shape, half=half, layout=Parallel("fsdp", 4, reduce=reduce), **options))
        for half, reduce in ((False, "micro_batch"), (True, "micro_batch"), (True, "step"))
    )
    with fake_device(case_of(shape)) as device:
        sizes = device.updates.sizes["student"]
    body, around = 4 * sizes.body / 1e9, 4 * (sizes.parameters - sizes.body) / 1e9
    assert plain.rollout["gathered"] == pytest.approx(around + 2 * body, rel=0.01)
    assert half.rollout["gathered"] == pytest.approx(around + body, rel=0.01)
    for purpose in ("student", "optimizer", "gradients"):
        assert half.update[purpose] == plain.update[purpose]
    more = sum(late.update.values()) - sum(half.update.values())
    assert 0.5 * (body + around) < more < body + around


def test_tensor_parallel_layers_hold_their_part():
    shape = Architecture("opt", 4, 128, 4, 4, 512, 512, tied=True)
    plain = measure(case_of(shape, layout=Parallel("fsdp", 2), rollouts=8, minibatch=8))
    split = measure(case_of(shape, layout=Parallel("fsdp_tp", 4, tensor_parallel_size=2), rollouts=8, minibatch=8))
    assert split.rollout["caches"] == pytest.approx(plain.rollout["caches"] / 2, rel=0.05)
    assert split.update["activations"] < 0.75 * plain.update["activations"]


@pytest.mark.slow
def test_what_changes_a_plan():
    shape = FAMILIES["llama"]
    base = measure(case_of(shape))
    half = measure(case_of(shape, half=True))
    assert (
        half.update["half-type weights"] > 0.4 * half.update["student"]
        and half.update["activations"] < base.update["activations"]
    )
    assert "teacher's states" not in measure(case_of(shape, keep_states=False)).update
    small = dict(microbatch_tokens=255, linear_loss=LinearLoss(0.1))  # so that scoring is not the peak
    alone = measure(case_of(shape, sampler=Sampler(alpha=0.0, max_new_tokens=224, batch_size=8), **small))
    assert alone.rollout["caches"] < 0.6 * base.rollout["caches"]
    scored = measure(case_of(shape, sampler=Sampler(alpha=0.0, max_new_tokens=224, batch_size=1)))
    assert "caches" not in scored.rollout and scored.rollout["activations"] > 2 * alone.rollout.get("activations", 0)
    blocks = measure(
        case_of(shape, regulariser=PretrainLoss(batch_size=8), block=512, microbatch_tokens=4096, minibatch=8)
    )
    assert blocks.update["activations"] == pytest.approx(base.update["activations"] * 8 * 511 / (8 * 255), rel=0.05)


def test_the_largest_that_fits():
    asked = []

    def peak(n):
        asked.append(n)
        return 2.0 + 0.5 * n + (1.0 if n > 9 else 0.0)

    assert largest(peak, 24, 7.1) == 9  # 9: 6.5, 10: 8
    assert largest(peak, 24, 2.4) == 0 and largest(peak, 24, 100.0) == 24
    assert len(asked) < 14


def test_a_rollout_leaves_no_cache_behind():
    """Without a search for cycles: keys and values would be there during the update."""
    network = make_model(dtype=torch.float32)
    gc.disable()
    try:
        cache, prompt = RollingCache(2, 3, 4, refills=False), DynamicCache()
        LanguageModel(network).hidden(torch.tensor([[3, 4, 5]]), prompt)
        cache.admit(prompt, [3])
        keys = weakref.ref(cache.layers[0].keys)
        del cache
        assert keys() is None
    finally:
        gc.enable()
