"""How long a round takes, from stated rates: decoding reads memory, scoring and updates multiply, shards travel."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from minillm.common.errors import check
from minillm.planning.case import Case
from minillm.planning.networks import Sizes


@dataclass(frozen=True)
class Rates:
    """The config node `rates`: assumed of each device, and the share of it that is reached; conf/plan.yaml."""

    peak_tflops: float = 989.0
    memory_bandwidth: float = 3350.0
    node_bandwidth: float = 450.0
    network_bandwidth: float = 50.0
    devices_per_node: int = 8
    product_utilisation: float = 0.4
    memory_utilisation: float = 0.6
    network_utilisation: float = 0.7
    overlap: float = 0.0
    launch_microseconds: float = 5.0

    def __post_init__(self):
        shares = ("product_utilisation", "memory_utilisation", "network_utilisation")
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        check(
            *((0 < values[name] <= 1, f"{name}={values[name]}: wanted a share above 0, at most 1") for name in shares),
            (0 <= self.overlap <= 1, f"overlap={self.overlap}: wanted a share of 0 to 1"),
            *(
                (value > 0, f"{name}={value}: wanted a positive number")
                for name, value in values.items()
                if name not in (*shares, "overlap")
            ),
        )

    @property
    def operations(self) -> float:
        """Operations a second in matrix products."""
        return self.peak_tflops * 1e12 * self.product_utilisation

    @property
    def reading(self) -> float:
        """Bytes a second that are read from the device's memory."""
        return self.memory_bandwidth * 1e9 * self.memory_utilisation

    def travel(self, devices: int) -> float:
        """Bytes a second in and out of each device of a group of `devices`: at the network's rate where one node does
        not hold the group."""
        inside = devices <= self.devices_per_node
        return (self.node_bandwidth if inside else self.network_bandwidth) * 1e9 * self.network_utilisation


@dataclass(frozen=True)
class Speed:
    """Seconds of a round by what they are spent on, on the device that has most to do; validation is not counted."""

    seconds: dict[str, float]
    rounds: int
    answers: float  # tokens of all rows of a round

    @property
    def round(self) -> float:
        return sum(self.seconds.values())

    @property
    def decoding_rate(self) -> float:
        """Tokens a second over all devices, in the rollout alone; 0 where there is none."""
        return self.answers / self.seconds["rollout"] if "rollout" in self.seconds else 0.0

    @property
    def rate(self) -> float:
        """Tokens of answers a second, over the whole round."""
        return self.answers / self.round

    @property
    def days(self) -> float:
        return self.rounds * self.round / 86_400


def speed(
    case: Case,
    sizes: dict[str, Sizes],
    rates: Rates,
    *,
    steps: int,
    steps_per_round: int,
    prompt: int,
    answer: float,
    launches: int,
) -> Speed:
    """How long a round takes, and how many rounds a run of `steps` optimizer steps has.

    Args:
        sizes: those of `student` and `teacher`. prompt, answer: mean tokens of a row.
        launches: operations that are launched for one decoding step.
    """
    layout = case.layout
    student, teacher = sizes["student"], sizes.get("teacher")
    tensor, travel = layout.tensor_parallel_size, rates.travel(layout.world_size)
    share = (layout.data_parallel_size - 1) / layout.data_parallel_size
    seconds = {}
    if case.rollouts:
        if layout.sharded:
            weights = _gathered(student, case.half) + teacher.body * _itemsize(teacher, case.half)
            seconds["gathering"] = share * weights / tensor / travel
        seconds["rollout"] = _rollout(case, sizes, rates, prompt, answer, launches)
        if not case.teacher_decodes:
            tokens = case.local_rollouts * (prompt + answer)
            seconds["scoring"] = 2 * teacher.products * tokens / tensor / rates.operations

    tokens = case.local_minibatch * (prompt + answer)
    blocks = case.local_blocks * case.block
    passes = 4 + 2 * case.student.recompute
    trained = min(student.trained, student.products)
    own = passes * student.products + 2 * trained
    attention = (passes / 2 + 1) * 2 * student.layers * student.width
    work = own * (tokens + blocks) + attention * (tokens * (prompt + answer) + blocks * case.block)
    if case.objective.needs:
        work += 2 * (teacher.head * case.local_minibatch * answer if case.states else teacher.products * tokens)
    if case.block and case.regulariser.needs:
        work += 2 * teacher.products * blocks
    seconds["update"] = steps_per_round * work / tensor / rates.operations

    moved = 0.0
    if layout.sharded:  # weights forward and backward, gradients once
        n_sums = 1 if layout.reduce == "step" else case.local_microbatches
        gathered = 2 * case.local_microbatches * _gathered(student, case.half)
        moved = share * (gathered + n_sums * student.trained * student.itemsize) / tensor / travel
    elif layout.data_parallel_size > 1:
        moved = 2 * share * student.trained * student.itemsize / travel
    moved += _exchanged(case, student, passes * (tokens + blocks), rates)
    if moved:
        seconds["communication"] = steps_per_round * moved * (1 - rates.overlap)
    rows = case.rollouts or case.minibatch
    return Speed(seconds, math.ceil(steps / steps_per_round), rows * answer)


def _itemsize(model: Sizes, half: bool) -> int:
    """Bytes of a weight of the layers as it travels, see `parallel.shard`."""
    return min(model.itemsize, 2) if half else model.itemsize


def _gathered(model: Sizes, half: bool) -> int:
    """Bytes of all weights as they travel."""
    return model.body * _itemsize(model, half) + (model.parameters - model.body) * model.itemsize


def _rollout(case: Case, sizes: dict[str, Sizes], rates: Rates, prompt: float, answer: float, launches: int) -> float:
    tensor, rows = case.layout.tensor_parallel_size, case.decoding_rows
    models = [sizes["student"], *([sizes["teacher"]] if case.teacher_decodes else [])]
    read = multiplied = exchanged = prompts = 0.0
    for each in models:
        size = 2 if case.half else each.itemsize
        read += (each.read + rows * (prompt + answer / 2) * each.cached) * size / tensor
        multiplied += 2 * each.products * rows / tensor
        prompts += 2 * each.products * prompt * case.local_rollouts / tensor
        exchanged += _exchanged(case, each, 2 * rows, rates)
    step = max(read / rates.reading, multiplied / rates.operations, launches * rates.launch_microseconds * 1e-6)
    n_steps = math.ceil(case.local_rollouts * answer / rows)
    return n_steps * (step + exchanged) + prompts / rates.operations


def _exchanged(case: Case, model: Sizes, tokens: float, rates: Rates) -> float:
    """Seconds of the sums over tensor-parallel devices, two in each layer. Forward and backward exchange as much;
    `tokens` counts each token twice a pass."""
    tensor = case.layout.tensor_parallel_size
    size = 2 if case.half else model.itemsize
    return tokens * model.layers * model.width * size * 2 * (tensor - 1) / tensor / rates.travel(tensor)
