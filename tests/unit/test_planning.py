"""Formulas of memory against the allocator's own account of real tensors, and against hand counts."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from minillm.common.types import PromptBatch, Rollout
from minillm.models import Architecture, LanguageModel, Lora, RollingCache
from minillm.models.pair import recompute_activations
from minillm.objectives import MiniLLM
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import Parallel
from minillm.planning import Case, Sizes, largest_microbatch, measure
from minillm.rollout import decode, prepared
from minillm.rollout.micro_batch import micro_batches
from minillm.train.optim import Optim

FAMILIES = {
    "llama": Architecture("llama", 2, 128, 4, 2, 352, 8192, tied=True),
    "gpt2": Architecture("gpt2", 2, 128, 4, 4, 512, 8192, tied=True),
    "opt": Architecture("opt", 2, 128, 4, 4, 512, 8192, tied=True),
    "qwen2": Architecture("qwen2", 2, 96, 4, 2, 256, 8192, tied=False),
    "qwen3": Architecture("qwen3", 2, 96, 4, 2, 256, 8192, tied=True),
    "gpt_neox": Architecture("gpt_neox", 2, 128, 4, 4, 512, 8192, tied=False),
}
DEEP = Architecture("llama", 6, 128, 4, 4, 384, 512, tied=False)


def sizes_of(shape, dtype=torch.float32, *, trained=True, **options):
    return Sizes.planned(shape.config(), dtype, "sdpa", trained=trained, **options)


def case_of(shape, teacher=None, **changes):
    options = dict(student=sizes_of(shape), teacher=sizes_of(teacher or shape, trained=False), prompt=32, answer=224,
                   minibatch=16, microbatch_tokens=8 * 255, rollouts=16, decoded=8, chunk_mb=4.0)  # fmt: skip
    return Case(**options | changes)


def above(phase, *there):
    """GB of what is not there before."""
    return sum(size for name, size in phase.items() if name not in there)


def allocated(function) -> float:
    """The most that the function holds at a time, in GB, of what it allocates itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    events = [each for each in trace.profiler.kineto_results.events() if each.name() == "[memory]"]
    live = most = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        live += each.nbytes()
        most = max(most, live)
    return most / 1e9


def real_updates(case, shape, change=lambda network: None):
    """Two optimizer steps of two micro-batches by the package's own functions, as the training module makes them."""
    network = shape.random_model().train()
    change(network)
    model, head = LanguageModel(network), LanguageModel(shape.random_model()).head()
    optim, objective, loss = Optim(), MiniLLM(), LinearLoss(case.chunk_mb)
    optimizer = optim.build(each for each in network.parameters() if each.requires_grad)
    rows, prompt, answer = case.minibatch, case.prompt, case.answer
    ids = torch.randint(1, shape.vocabulary, (rows, prompt + answer))
    mask, values = torch.ones_like(ids, dtype=torch.bool), torch.randn(2, rows, answer)
    parts = (ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:], *values)
    rollout = prepared(
        Rollout(*parts, torch.randn(rows, answer, shape.width), behaviour_logprobs_BR=values[0]), objective
    )

    def step():
        normaliser = objective.normaliser(rollout.response_mask_BR)
        for micro in micro_batches(rollout, case.microbatch_tokens):
            output = loss(
                objective,
                micro.side(model),
                Side(micro.take(rollout.teacher_hidden_BRH), head),
                micro.take(rollout.response_ids_BR),
                {name: micro.take(each) for name, each in rollout.constants.items()},
                normaliser=normaliser,
            )
            output.loss.backward()
        optim.step(optimizer, optim.norm(optimizer), 1e-6)

    return lambda: (step(), step())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rel"),
    [
        ("llama", 0.05),
        *(pytest.param(each, 0.05, marks=pytest.mark.slow) for each in ("opt", "gpt2", "qwen2", "qwen3")),
        pytest.param("gpt_neox", 0.15, marks=pytest.mark.slow),
    ],
)
def test_an_update_is_what_the_allocator_says(family, rel):
    """8 rows of 255 tokens at a time. Above the loaded models: weights and kept states are there before."""
    case, shape = case_of(FAMILIES[family]), FAMILIES[family]
    planned = above(measure(case).update, "student", "teacher", "teacher's states")
    assert planned == pytest.approx(allocated(real_updates(case, shape)), rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "change"),
    [
        (dict(chunk_mb=None), lambda network: None),
        (dict(recompute=True), recompute_activations),
        (dict(student=sizes_of(DEEP, lora=Lora())), lambda network: Lora().onto(network, base="")),
    ],
    ids=["plain loss", "checkpointing", "lora"],
)
def test_what_changes_an_update(options, change):
    case = case_of(DEEP, **options)
    planned = above(measure(case).update, "student", "teacher", "teacher's states")
    assert planned == pytest.approx(allocated(real_updates(case, DEEP, change)), rel=0.15)


def test_a_rollout_is_what_the_allocator_says():
    shape, teacher = FAMILIES["llama"], FAMILIES["qwen2"]
    case = case_of(shape, teacher, rollouts=12, minibatch=12, answer=40, prompt=24, decoded=6)
    planned = above(measure(case).rollout, "student", "teacher", "optimizer")
    models = [LanguageModel(each.random_model()) for each in (shape, teacher)]
    ids = torch.randint(1, 8192, (12, 24))
    mask = torch.arange(24) >= torch.arange(12).unsqueeze(-1) % 3
    prompts = PromptBatch(ids, mask, torch.arange(12))
    options = dict(stop_ids=(8192,), pad_id=0, max_new_tokens=40, seeds=list(range(12)), batch_size=6, alpha=0.2)
    assert planned == pytest.approx(allocated(lambda: decode(*models, prompts, **options)), rel=0.15)


def test_weights_gradients_and_moments_are_counted():
    network = FAMILIES["llama"].random_model()
    planned = measure(case_of(FAMILIES["llama"], student=Sizes.of(network))).update
    weights = sum(each.nbytes for each in network.parameters()) / 1e9
    assert planned["student"] == planned["teacher"] == planned["gradients"] == pytest.approx(weights)
    assert planned["optimizer"] == pytest.approx(2 * weights)
    assert planned["teacher's states"] == pytest.approx(16 * 224 * 128 * 4 / 1e9)


def test_sizes_of_a_config_are_those_of_its_network():
    assert sizes_of(DEEP) == Sizes.of(DEEP.random_model().train())


def test_shards():
    """Of 4 devices each holds a quarter; what is gathered in an update is the root and few layers."""
    sizes, small = sizes_of(DEEP), dict(microbatch_tokens=2 * 255, chunk_mb=0.1)
    whole, parts = (measure(case_of(DEEP, layout=layout, **small)) for layout in (Parallel(), Parallel("fsdp", 4)))
    for purpose in ("student", "optimizer", "gradients"):
        assert parts.update[purpose] == pytest.approx(whole.update[purpose] / 4)
    body, around = 4 * sizes.body / 1e9, sizes.ends / 1e9
    assert parts.update["teacher"] == pytest.approx(around + body / 4)
    assert around <= parts.update["gathered"] < around + body * 4 / 6
    # In rollouts all of it is gathered: the student, and the teacher's layers, whose embeddings are whole anyway.
    assert parts.rollout["gathered"] == pytest.approx(around + 2 * body)


def test_half_types_halve_what_is_gathered_of_the_layers_and_late_sums_keep_whole_gradients():
    options, sizes = dict(microbatch_tokens=2 * 255, chunk_mb=0.1), sizes_of(DEEP)
    half, late = (
        measure(case_of(DEEP, half=True, layout=Parallel("fsdp", 4, reduce=reduce), **options))
        for reduce in ("micro_batch", "step")
    )
    body, around = 4 * sizes.body / 1e9, sizes.ends / 1e9
    assert half.rollout["gathered"] == pytest.approx(around + body)
    assert late.update["gradients"] == pytest.approx(4 * half.update["gradients"]) == pytest.approx(body + around)


def test_tensor_parallel_layers_hold_their_part():
    shape = Architecture("opt", 4, 128, 4, 4, 512, 512, tied=True)
    plain = measure(case_of(shape, layout=Parallel("fsdp", 2), rollouts=8, minibatch=8))
    split = measure(case_of(shape, layout=Parallel("fsdp_tp", 4, tensor_parallel_size=2), rollouts=8, minibatch=8))
    assert split.rollout["caches"] == pytest.approx(plain.rollout["caches"] / 2)
    assert split.update["activations"] < 0.75 * plain.update["activations"]


def test_what_changes_a_plan():
    shape = FAMILIES["llama"]
    base, half = measure(case_of(shape)).update, measure(case_of(shape, half=True)).update
    assert half["half-type weights"] > 0.1 * half["student"] and half["activations"] < base["activations"]
    assert not measure(case_of(shape, keep_states=False)).update.get("teacher's states")
    alone = measure(case_of(shape, teacher_decodes=False, microbatch_tokens=255, chunk_mb=0.1))
    assert alone.rollout["caches"] < 0.6 * measure(case_of(shape)).rollout["caches"]
    scored = measure(case_of(shape, teacher_decodes=False, decoded=1)).rollout
    assert "caches" not in scored and scored["activations"] > 2 * alone.rollout.get("activations", 0)
    blocks = measure(case_of(shape, blocks=8, block=512, microbatch_tokens=4096, minibatch=8)).update
    assert blocks["activations"] == pytest.approx(base["activations"] * 8 * 511 / (8 * 255), rel=0.05)
    away = measure(case_of(shape, offload=True))
    assert away.update["teacher"] < 0.9 * away.rollout["teacher"]


def test_the_largest_that_fits():
    case = case_of(FAMILIES["llama"])

    def total(rows):
        return sum(measure(replace(case, microbatch_tokens=rows * case.columns)).update.values())

    assert total(9) < total(10)
    assert largest_microbatch(case, (total(9) + total(10)) / 2) == 9
    assert largest_microbatch(case, total(1) / 2) == 0 and largest_microbatch(case, 100.0) == 16


def test_a_rollout_leaves_no_cache_behind():
    """Without a search for cycles: keys and values would be there during the update."""
    network = FAMILIES["llama"].random_model()
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
