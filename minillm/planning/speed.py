"""How long a round takes, from stated rates: decoding reads memory, scoring and updates multiply, shards travel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minillm.common.errors import check
from minillm.planning.memory import Case
from minillm.planning.networks import Sizes


@dataclass(frozen=True)
class Rates:
    """The config node `rates`: assumed of each device, and the share of it that is reached; conf/plan.yaml."""

    peak_tflops: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float
    devices_per_node: int
    product_utilisation: float
    memory_utilisation: float
    network_utilisation: float
    overlap: float
    launch_microseconds: float

    def __post_init__(self):
        check(
            *((value > 0, f"{name}={value}: wanted a number above 0") for name, value in vars(self).items()
              if name != "overlap"),
            *((0 <= value <= 1, f"{name}={value}: wanted a share of 0 to 1") for name, value in vars(self).items()
              if name == "overlap" or name.endswith("utilisation")),
        )  # fmt: skip

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
    """Seconds of a round by what they are spent on, on the device that has most to do; validation is not counted.
    `rate`: tokens of answers a second, over the whole round."""

    seconds: dict[str, float]
    rounds: int
    round: float
    rate: float
    days: float


def speed(case: Case, rates: Rates, *, steps: int, steps_per_round: int, prompt: int, answer: float) -> Speed:
    """How long a round takes, and how many rounds a run of `steps` optimizer steps has; `prompt` and `answer` are mean
    tokens of a row."""
    layout, student, teacher = case.layout, case.student, case.teacher
    tensor, travel = layout.tensor_parallel_size, rates.travel(layout.world_size)
    share, whole = 1 - 1 / layout.data_parallel_size, case.gathered(student) + student.ends
    seconds = {}
    if case.rollouts:
        if layout.sharded:
            seconds["gathering"] = share * (whole + case.gathered(teacher)) / travel
        seconds["rollout"] = _rollout(case, rates, prompt, answer)
        if not case.teacher_decodes:
            tokens = case.local(case.rollouts) * (prompt + answer)
            seconds["scoring"] = 2 * teacher.products * tokens / tensor / rates.operations

    rows = case.local(case.minibatch)
    tokens, corpus = rows * (prompt + answer), case.local(case.blocks) * case.block
    passes = 4 + 2 * case.recompute
    own = passes * student.products + 2 * min(student.trained, student.products)
    attention = (passes / 2 + 1) * 2 * student.layers * student.width
    work = own * (tokens + corpus) + attention * (tokens * (prompt + answer) + corpus * case.block)
    if case.reads_teacher:
        work += 2 * (teacher.head * rows * answer if case.state_bytes() else teacher.products * tokens)
    if case.corpus_teacher:
        work += 2 * teacher.products * corpus
    seconds["update"] = steps_per_round * work / tensor / rates.operations

    moved, gradients = 0.0, student.trained * student.itemsize
    if layout.sharded:  # weights forward and backward, gradients once
        n_sums = 1 if layout.reduce == "step" else case.microbatches
        moved = share * (2 * case.microbatches * whole + n_sums * gradients / tensor) / travel
    elif layout.data_parallel_size > 1:
        moved = 2 * share * gradients / travel
    moved += _exchanged(case, student, passes * (tokens + corpus), rates)
    if moved:
        seconds["communication"] = steps_per_round * moved * (1 - rates.overlap)
    whole, rounds = sum(seconds.values()), math.ceil(steps / steps_per_round)
    rate = (case.rollouts or case.minibatch) * answer / whole
    return Speed(seconds, rounds, round=whole, rate=rate, days=rounds * whole / 86_400)


def _rollout(case: Case, rates: Rates, prompt: float, answer: float) -> float:
    tensor, rows, local = case.layout.tensor_parallel_size, case.decoding_rows, case.local(case.rollouts)
    read = multiplied = exchanged = prompts = launches = 0.0
    for each in case.decoders:
        read += (each.read + rows * (prompt + answer / 2) * each.cached) * case.item(each) / tensor
        multiplied += 2 * each.products * rows / tensor
        prompts += 2 * each.products * prompt * local / tensor
        exchanged += _exchanged(case, each, 2 * rows, rates)
        launches += each.launches
    launched = launches * rates.launch_microseconds * 1e-6
    step = max(read / rates.reading, multiplied / rates.operations, launched)
    return math.ceil(local * answer / rows) * (step + exchanged) + prompts / rates.operations


def _exchanged(case: Case, model: Sizes, tokens: float, rates: Rates) -> float:
    """Seconds of the sums over tensor-parallel devices, two in each layer. Forward and backward exchange as much;
    `tokens` counts each token twice a pass."""
    tensor = case.layout.tensor_parallel_size
    size = tokens * model.layers * model.width * case.item(model)
    return size * 2 * (tensor - 1) / tensor / rates.travel(tensor)
