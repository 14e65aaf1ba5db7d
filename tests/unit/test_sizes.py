"""What `auto` stands for: the sizes of a CPU there, on a GPU the largest that the planner finds room for."""

import pytest
import torch

from minillm.common.errors import ConfigError
from minillm.plan import make_plan
from minillm.planning import Memory, measure
from minillm.train.preview.memory import CPU, LEAST, MOST, SHARE, case_of, choose, choose_sizes, sizes_of
from tests.conf.test_compose import settings
from tests.tiny import make_pair
from tests.unit.test_plan import SMALL, TRAINED, question

OWN = ["sampler.batch_size=7", "regime.microbatch_tokens=900", "linear_loss.chunk_mb=3"]


def values(made):
    return made.sampler.batch_size, made.regime.microbatch_tokens, made.linear_loss.chunk_mb


def test_a_cpu_takes_fixed_sizes_and_a_number_of_ones_own_stays():
    made = settings("experiment=demo")
    assert values(made) == ("auto", "auto", "auto")
    assert values(CPU.fill(made)) == (32, 2048, 32.0)
    assert values(MOST.fill(settings("experiment=demo", *OWN))) == (7, 900, 3)
    assert MOST.fill(settings("linear_loss=plain")).linear_loss.chunk_mb is None
    assert choose_sizes(made, None, None, "32-true", None) == CPU


@pytest.mark.parametrize(("minibatch", "rows"), [(32, 8), (4, 4), (12, 6), (7, 7), (11, 1)])
def test_a_supervised_micro_batch_divides_the_mini_batch(minibatch, rows):
    made = settings("regime=supervised", "objective=sft", f"regime.minibatch_size={minibatch}")
    assert CPU.fill(made).regime.microbatch_size == rows and CPU.fill(made).accumulated == minibatch // rows


def test_where_micro_batches_are_in_the_objective_no_device_changes_them():
    made = MOST.fill(settings("objective=reference"))
    assert values(made) == (256, 2048, 512.0)


@pytest.mark.parametrize("key", ["sampler.batch_size", "regime.microbatch_tokens", "linear_loss.chunk_mb"])
def test_what_is_no_size_is_refused(key):
    for value in ("many", "0", "-2"):
        with pytest.raises(ConfigError, match=f"{key}='?{value}"):
            settings(f"{key}={value}")


def memory_of(fixed, a_row, a_token):
    """GB that grow with the sizes."""
    return lambda case: Memory(
        {"student": fixed, "caches": a_row * case.decoded},
        {"student": fixed, "activations": a_token * case.microbatch_tokens},
    )


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("fixed", "a_row", "a_token", "rows", "tokens", "chunk_mb"),
    [
        (20, 0.1, 0.001, 256, 16384, 512.0),
        (20, 0.2, 0.001, 128, 16384, 512.0),
        (20, 0.1, 0.008, 256, 4096, 128.0),
        (60, 0.1, 0.001, 32, 2048, 64.0),
        (90, 0.1, 0.001, 8, 512, 16.0),
    ],
)
def test_each_phase_is_halved_until_it_fits(fixed, a_row, a_token, rows, tokens, chunk_mb):
    made = settings(*(each for each in TRAINED if "microbatch" not in each))
    make, needs = question(*SMALL, "devices=1").make, memory_of(fixed, a_row, a_token)
    found, case = choose(made, make, 80.0, needs)
    assert (found.rows, found.tokens, found.chunk_mb) == (rows, tokens, chunk_mb)
    assert found == LEAST or needs(case).total <= SHARE * 80


def of_a_run(memory, vocabulary=31, **layout):
    """The sizes of a run with loaded models, and what it then needs by the planner."""
    pair = make_pair(vocabulary=vocabulary, dtype=torch.float32)
    made = settings("data.max_prompt_tokens=30", "sampler.max_new_tokens=60", "data.block_size=64",
                    *(f"strategy.{key}={value}" for key, value in layout.items()))  # fmt: skip
    prompts = type("Prompts", (), {"longest": 30})
    found = choose_sizes(made, pair, prompts, "bf16-mixed", memory)
    case = case_of(found.fill(made), *sizes_of(pair), prompt=30, answer=60, half=True)
    return found, measure(case).total


@pytest.mark.slow
def test_a_run_takes_what_its_gpu_has_room_for():
    assert of_a_run(80.0)[0] == MOST
    found, needs = of_a_run(0.02)
    assert found.tokens < MOST.tokens and needs <= SHARE * 0.02
    smaller, needs = of_a_run(0.008)
    assert smaller.rows < found.rows and smaller.tokens < found.tokens and needs <= SHARE * 0.008


def test_parts_of_weights_leave_room_for_more():
    """Each device of four has a quarter of the moments in rollouts, and fewer rows."""
    sizes = [of_a_run(0.01, kind=kind, devices=4)[0] for kind in ("ddp", "fsdp")]
    assert sizes[0].rows <= sizes[1].rows <= 64


def test_a_plan_for_gpt2_on_an_h100_fills_it():
    plan = make_plan(question("recipe=minillm", "pair=gpt2_120m", "devices=1", "device_memory=80"))
    case = plan.case
    assert (case.decoded, case.chunk_mb) == (256, 512.0) and case.microbatch_tokens >= 8192
    assert plan.memory.total <= SHARE * 80
