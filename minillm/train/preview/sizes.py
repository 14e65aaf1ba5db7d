"""The settings of a run as the planner takes them; and what `auto` stands for in settings that change speed and memory,
and numbers by no more than rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from minillm.common.errors import check
from minillm.planning import Blueprint, Case, Device, Memory
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings

AUTO = "auto"
SHARE = 0.8  # of a GPU's memory that a plan may fill: it can be 15% off, and validation is not in it
Network = tuple[PretrainedConfig, torch.dtype]  # with the type of its weights as they are loaded


def case_from(
    settings: Settings,
    student: Network,
    teacher: Network | None,
    *,
    prompt: int,
    answer: int,
    offload: bool,
    half: bool,
) -> Case:
    """The sizes of a run of train.py on one device. The settings say no `auto`, see `AutoSizes.fill`; what they leave
    open besides is given."""
    model, regime, regulariser = settings.model, settings.regime, settings.regulariser
    on_policy = isinstance(regime, OnPolicy)
    return Case(
        student=Blueprint(*student, model.attention, model.lora, model.gradient_checkpointing),
        teacher=None if teacher is None else Blueprint(*teacher, model.attention),
        objective=settings.objective,
        regulariser=regulariser,
        optim=settings.optim,
        prompt=prompt,
        answer=answer,
        block=settings.data.block_size if regulariser.on else 0,
        rollouts=regime.rollouts if on_policy else 0,
        minibatch=regime.minibatch_size,
        keep_states=on_policy and regime.teacher_states == "keep",
        offload=offload,
        half=half,
        **_batches(settings),
    )


def _batches(settings: Settings) -> dict[str, Any]:
    """What goes through the models at a time."""
    regime, longest = settings.regime, settings.data.longest
    tokens = regime.microbatch_tokens if isinstance(regime, OnPolicy) else regime.microbatch_size * longest
    return dict(
        sampler=settings.sampler,
        linear_loss=settings.linear_loss,
        microbatch_tokens=tokens,
        microbatch_rows=regime.microbatch_size,
    )


@dataclass(frozen=True)
class AutoSizes:
    """The values of `sampler.batch_size`, `regime.microbatch_tokens`, `regime.microbatch_size` (of regime=supervised)
    and `linear_loss.chunk_mb`."""

    rows: int
    tokens: int
    answers: int
    chunk_mb: float

    @classmethod
    def of(cls, stored: dict[str, Any], file: Path) -> AutoSizes:
        """What a run's file says. Raises ConfigError: damaged."""
        kinds = {field.name: (int, float) if field.name == "chunk_mb" else (int,) for field in fields(cls)}
        whole = stored.keys() == kinds.keys() and all(
            type(value) in kinds[name] and 0 < value < float("inf") for name, value in stored.items()
        )
        check((whole, f"{file}: damaged; wanted a positive number for each size. Delete it to have them chosen anew"))
        return cls(**stored)

    def smaller(self, *, rollout: bool, update: bool) -> AutoSizes:
        """Half of what one of the phases, or both, depend on."""
        halved = dict(rows=max(LEAST.rows, self.rows // 2)) if rollout else {}
        if update:
            halved |= dict(tokens=max(LEAST.tokens, self.tokens // 2), answers=max(LEAST.answers, self.answers // 2),
                           chunk_mb=max(LEAST.chunk_mb, self.chunk_mb / 2))  # fmt: skip
        return replace(self, **halved)

    def fill(self, settings: Settings) -> Settings:
        """The settings with these sizes in place of every `auto`. Where the objective divides by what is in a
        micro-batch, its size changes the numbers, and is what it is on a CPU."""
        sampler, regime, loss = settings.sampler, settings.regime, settings.linear_loss
        here = CPU if settings.objective.per_micro_batch else self
        if sampler.batch_size == AUTO:
            sampler = replace(sampler, batch_size=self.rows)
        if isinstance(regime, OnPolicy) and regime.microbatch_tokens == AUTO:
            regime = replace(regime, microbatch_tokens=here.tokens)
        elif regime.microbatch_size == AUTO:
            fitting = (n for n in range(self.answers, 0, -1) if regime.minibatch_size % n == 0)
            regime = replace(regime, microbatch_size=next(fitting))
        if loss.chunk_mb == AUTO:
            loss = replace(loss, chunk_mb=self.chunk_mb)
        return replace(settings, sampler=sampler, regime=regime, linear_loss=loss)


CPU = AutoSizes(rows=32, tokens=2048, answers=8, chunk_mb=64.0)
MOST = AutoSizes(rows=256, tokens=16_384, answers=32, chunk_mb=512.0)  # more makes no GPU faster
LEAST = AutoSizes(rows=8, tokens=512, answers=1, chunk_mb=16.0)


def left_open(settings: Settings) -> bool:
    """Whether anything is `auto`."""
    return CPU.fill(settings) != settings


def choose(
    settings: Settings, case: Case, memory_of: Callable[[Case], Memory], memory: float
) -> tuple[AutoSizes, Memory]:
    """The sizes that fill a GPU, halved until each phase of the case needs at most SHARE of its `memory` (GB); the
    least ones where nothing fits. And what the case then needs, by `memory_of`, see `planning.Device.memory`."""
    sizes = replace(MOST, rows=min(MOST.rows, max(LEAST.rows, case.local_rollouts)))
    while True:
        found = memory_of(replace(case, **_batches(sizes.fill(settings))))
        rollout, update = (sum(phase.values()) > SHARE * memory for phase in (found.rollout, found.update))
        # Where the teacher takes no part in decoding, it scores answers in micro-batches, which belong to the rollout.
        smaller = sizes.smaller(rollout=rollout, update=update or (rollout and not case.teacher_decodes))
        if smaller == sizes:
            return sizes, found
        sizes = smaller


def measure_chosen(settings: Settings, device: Device, memory: float) -> Memory:
    """What a device needs, and from now on has, with sizes that are `auto` as a run on it would choose them."""
    return choose(settings, device.case, device.memory, memory)[1] if left_open(settings) else device.memory()
