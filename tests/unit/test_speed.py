"""Seconds of a round against sums by hand."""

from dataclasses import replace

import pytest

from minillm.common.errors import ConfigError
from minillm.parallel import Parallel
from minillm.planning import Case, Rates, Sizes, speed

RATES = Rates(
    peak_tflops=1e-3, memory_bandwidth=1e-3, node_bandwidth=1e-3, network_bandwidth=1e-4, devices_per_node=4,
    product_utilisation=0.5, memory_utilisation=0.5, network_utilisation=0.5, launch_microseconds=1.0, overlap=0.0,
)  # fmt: skip
STUDENT = Sizes(
    parameters=1000, trained=1000, products=900, read=900, head=200, body=700, cached=40, layers=2, width=8, itemsize=4,
    matrices=700, stored=4000, launches=1,
)  # fmt: skip
TEACHER = replace(STUDENT, parameters=3000, trained=0, products=2500, read=2500, head=400, body=2000, cached=80,
                  matrices=2000, stored=12000, launches=2)  # fmt: skip


def of(case, **options):
    return speed(case, RATES, **dict(steps=32, steps_per_round=2, prompt=10, answer=20) | options)


def case(**changes):
    options = dict(student=STUDENT, teacher=TEACHER, prompt=32, answer=224, rollouts=16, minibatch=8,
                   microbatch_tokens=4 * 255, decoded=4)  # fmt: skip
    return Case(**options | changes)


def test_one_device():
    found = of(case())
    # 80 steps of 4 rows: each reads both models and what is cached of 20 columns; prompts are products.
    read = 4 * (900 + 2500 + 4 * (10 + 10) * (40 + 80))
    prompts = 2 * (900 + 2500) * 10 * 16
    assert found.seconds["rollout"] == pytest.approx(80 * read / 5e5 + prompts / 5e8)
    # 8 rows of 30 tokens, forward once and backward twice, causal attention, the teacher's head over answers.
    tokens = 8 * 30
    work = 6 * 900 * tokens + 3 * 2 * 2 * 8 * 30 * tokens + 2 * 400 * 8 * 20
    assert found.seconds["update"] == pytest.approx(2 * work / 5e8)
    assert set(found.seconds) == {"rollout", "update"} and found.rounds == 16
    assert found.rate == pytest.approx(16 * 20 / found.round) and found.days == pytest.approx(16 * found.round / 86400)


def test_devices_share_the_rows_and_exchange_gradients():
    one, four, eight = of(case()), of(case(layout=Parallel("ddp", 4))), of(case(layout=Parallel("ddp", 8)))
    assert four.seconds["update"] == pytest.approx(one.seconds["update"] / 4)
    assert four.seconds["communication"] == pytest.approx(2 * 2 * 3 / 4 * 4000 / 5e5)
    assert eight.seconds["communication"] == pytest.approx(2 * 2 * 7 / 8 * 4000 / 5e4)  # two nodes


def test_shards_travel():
    found = of(case(layout=Parallel("fsdp", 2)))
    # The rollout's gathering, and for each micro-batch weights twice and gradients once.
    assert found.seconds["gathering"] == pytest.approx(1 / 2 * 4 * (1000 + 2000) / 5e5)
    assert found.seconds["communication"] == pytest.approx(2 * 1 / 2 * (2 * 4000 + 4000) / 5e5)


def test_half_types_travel_and_sums_once_a_step_are_fewer():
    half = of(case(layout=Parallel("fsdp", 2), half=True))
    student = 700 * 2 + 300 * 4  # layers in bfloat16, the rest as it is
    assert half.seconds["gathering"] == pytest.approx(1 / 2 * (student + 2000 * 2) / 5e5)
    assert half.seconds["communication"] == pytest.approx(2 * 1 / 2 * (2 * student + 4000) / 5e5)
    sizes = dict(minibatch=16, microbatch_tokens=255)  # eight micro-batches a device
    often, once = (of(case(layout=Parallel("fsdp", 2, reduce=reduce), **sizes)).seconds["communication"]
                   for reduce in ("micro_batch", "step"))  # fmt: skip
    assert often - once == pytest.approx(1 / 2 * 7 * 4000 / 5e5 * 2)


def test_experts_are_read_and_not_all_multiplied_with():
    one, other = of(case(student=replace(STUDENT, products=300))), of(case())
    assert one.seconds["update"] < 0.65 * other.seconds["update"]
    assert 0.9 * other.seconds["rollout"] < one.seconds["rollout"] < other.seconds["rollout"]


def test_what_costs_more():
    base = of(case())
    assert of(case(student=replace(STUDENT, launches=10**6))).seconds["rollout"] > 80
    assert of(case(blocks=4, block=64)).seconds["update"] > base.seconds["update"]
    scored = of(case(teacher_decodes=False))
    assert scored.seconds["scoring"] == pytest.approx(2 * 2500 * 16 * 30 / 5e8)
    assert scored.seconds["rollout"] < base.seconds["rollout"]


def test_rates_that_cannot_be():
    with pytest.raises(ConfigError) as caught:
        replace(RATES, peak_tflops=0, overlap=2, memory_utilisation=1.5)
    assert caught.value.problems == [
        "peak_tflops=0: wanted a number above 0",
        "memory_utilisation=1.5: wanted a share of 0 to 1",
        "overlap=2: wanted a share of 0 to 1",
    ]
