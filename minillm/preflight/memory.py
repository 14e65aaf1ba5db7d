"""The memory that a run on one device will need: the planner's figures for the models that are loaded."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from minillm.models import Pair
from minillm.modules import OnPolicy
from minillm.planning import Blueprint, Case, Memory, measure
from minillm.preflight.work import Work
from minillm.settings import Settings


def estimate(
    settings: Settings, pair: Pair, work: Work, *, longest_prompt: int, block_size: int, precision: str
) -> Memory | None:
    """At the longest answers that the settings allow; None for a family that cannot be run without data.

    Args:
        longest_prompt: tokens, of the training prompts. block_size: tokens of a corpus block, 0 without a corpus.
        precision: the trainer's.
    """
    model, regime = settings.model, settings.regime
    on_policy = isinstance(regime, OnPolicy)
    teacher = pair.teacher and pair.teacher.network
    student = Blueprint(
        pair.student.config, pair.student.dtype, model.attention, model.lora, model.gradient_checkpointing
    )
    case = Case(
        student=student,
        teacher=None if teacher is None else Blueprint(teacher.config, teacher.dtype, model.attention),
        objective=settings.objective,
        regulariser=settings.regulariser,
        linear_loss=settings.linear_loss,
        optim=settings.optim,
        sampler=settings.sampler,
        prompt=longest_prompt,
        answer=work.answer_tokens,
        block=block_size,
        rollouts=work.round_size if on_policy else 0,
        minibatch=work.minibatch_size,
        microbatch_tokens=work.microbatch_tokens,
        microbatch_rows=regime.microbatch_size,
        keep_states=work.keep_states,
        offload=teacher is not None and pair.teacher.offload and pair.student.device.type != "cpu",
        half=precision == "bf16-mixed",
    )
    try:
        memory = measure(case)
    except (RuntimeError, NotImplementedError):  # what a model decides by its data cannot be known
        return None
    return memory if teacher is None else _as_loaded(memory, teacher)


def _as_loaded(memory: Memory, teacher: PreTrainedModel) -> Memory:
    """With the teacher's weights as they are where they are quantised."""
    if not getattr(teacher, "is_quantized", False):
        return memory
    size = sum(each.numel() * each.element_size() for each in teacher.parameters()) / 1e9
    phases = (phase | {"teacher": size} if phase else phase for phase in (memory.rollout, memory.update))
    return replace(memory, **dict(zip(("rollout", "update"), phases, strict=True)))
