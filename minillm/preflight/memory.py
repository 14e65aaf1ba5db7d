"""The memory that a run on one device will need: the planner's figures for the models that are loaded."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from minillm.models import Pair
from minillm.planning import Case, Memory, measure
from minillm.settings import Settings


def case_of(settings: Settings, pair: Pair, *, prompt: int, answer: int, precision: str) -> Case:
    """The sizes of a run with the models that are loaded.

    Args:
        prompt, answer: tokens of the longest ones. precision: the trainer's.
    """
    student, teacher = pair.student, pair.teacher
    return Case.of(
        settings,
        (student.config, student.dtype),
        None if teacher is None else (teacher.network.config, teacher.network.dtype),
        prompt=prompt,
        answer=answer,
        offload=teacher is not None and teacher.offload and student.device.type != "cpu",
        half=precision == "bf16-mixed",
    )


def estimate(case: Case, pair: Pair) -> Memory | None:
    """What the run needs with the longest answers that the settings allow; None for a family that cannot be run on
    tensors without data."""
    try:
        memory = measure(case)
    except (RuntimeError, NotImplementedError):  # what a model decides by its data cannot be known
        return None
    return memory if pair.teacher is None else _as_loaded(memory, pair.teacher.network)


def _as_loaded(memory: Memory, teacher: PreTrainedModel) -> Memory:
    """Where the teacher is quantised, count its weights as they are loaded; the plan knows unquantised ones only."""
    if not getattr(teacher, "is_quantized", False):
        return memory
    size = sum(each.numel() * each.element_size() for each in teacher.parameters()) / 1e9
    phases = (phase | {"teacher": size} if phase else phase for phase in (memory.rollout, memory.update))
    return replace(memory, **dict(zip(("rollout", "update"), phases, strict=True)))
