"""The memory that a run on one device will need: the planner's figures for the models that are loaded."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from minillm.common.errors import ModelError
from minillm.data import PromptSet
from minillm.models import Pair
from minillm.parallel import Parallel
from minillm.planning import Case, Memory, fake_device, measure
from minillm.train.preview.sizes import CPU, AutoSizes, case_from, choose, left_open
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings


def case_of(settings: Settings, pair: Pair, *, prompt: int, answer: int, precision: str) -> Case:
    """The sizes of a run with the models that are loaded.

    Args:
        prompt, answer: tokens of the longest ones. precision: the trainer's.
    """
    student, teacher = pair.student, pair.teacher
    return case_from(
        settings,
        (student.config, student.dtype),
        None if teacher is None else (teacher.network.config, teacher.network.dtype),
        prompt=prompt,
        answer=answer,
        offload=teacher is not None and teacher.offload and student.device.type != "cpu",
        half=precision == "bf16-mixed",
    )


def choose_sizes(settings: Settings, pair: Pair, train: PromptSet, precision: str, memory: float | None) -> AutoSizes:
    """What `auto` stands for on this device: on a GPU what fits into its `memory` (GB), see `choose`; on a
    CPU (None), and for a family that cannot be planned, fixed sizes."""
    if memory is None or not left_open(settings):
        return CPU
    on_policy, data, layout = isinstance(settings.regime, OnPolicy), settings.data, settings.strategy
    answer = settings.sampler.max_new_tokens if on_policy else min(data.longest, data.max_response_tokens)
    longest = max(map(len, train.prompt_ids))
    case = case_of(CPU.fill(settings), pair, prompt=longest, answer=answer, precision=precision)
    # The processes of this run are a group already, so that no other can be made up: parts are counted by division.
    case = case.with_layout(Parallel("ddp", layout.data_parallel_size) if layout.sharded else layout)

    def memory_of(sized: Case) -> Memory:
        found = fake.memory(sized)
        found = found if pair.teacher is None else _as_loaded(found, pair.teacher.network)
        return _in_parts(found, layout, case.half) if layout.sharded else found

    try:
        with fake_device(case) as fake:
            return choose(settings, case, memory_of, memory)[0]
    except ModelError:
        return CPU


def _in_parts(memory: Memory, layout: Parallel, half: bool) -> Memory:
    """One device's share, where `memory` is that of whole weights. In rollouts weights are gathered, which is what
    their copies in a half type stand for."""
    shared = {"rollout": {"optimizer", "student" if half else "optimizer"},
              "update": {"student", "gradients", "optimizer", "teacher"}}  # fmt: skip
    phases = {
        phase: {
            name: size / layout.world_size if name in names else size for name, size in getattr(memory, phase).items()
        }
        for phase, names in shared.items()
    }
    return Memory(**phases)


def estimate(case: Case, pair: Pair) -> Memory | None:
    """What the run needs with the longest answers that the settings allow; None for a family that cannot be run on
    tensors without data."""
    try:
        memory = measure(case)
    except ModelError:
        return None
    return memory if pair.teacher is None else _as_loaded(memory, pair.teacher.network)


def _as_loaded(memory: Memory, teacher: PreTrainedModel) -> Memory:
    """Where the teacher is quantised, count its weights as they are loaded; the plan knows unquantised ones only."""
    if not getattr(teacher, "is_quantized", False):
        return memory
    size = sum(each.numel() * each.element_size() for each in teacher.parameters()) / 1e9
    phases = (phase | {"teacher": size} if phase else phase for phase in (memory.rollout, memory.update))
    return replace(memory, **dict(zip(("rollout", "update"), phases, strict=True)))
