"""What one device does in a round, as plain sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from minillm.objectives import Objective, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import Parallel
from minillm.plan.networks import Blueprint
from minillm.rollout import Sampler
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings

Network = tuple[PretrainedConfig, torch.dtype]  # with the type of its weights as they are loaded


@dataclass(frozen=True)
class Case:
    """Sizes of the training config, all global, not those of a device. Every answer is as long as the settings allow.

    Args:
        prompt, answer: tokens of the longest prompt and of the longest answer.
        block: tokens of a corpus block, 0 without a corpus.
        rollouts: rows of a round, 0 where the data gives the answers; then `sampler` is not used.
        microbatch_rows: the most rows of a micro-batch, even where `microbatch_tokens` would allow more.
        keep_states: whether the teacher's hidden states are kept from the rollout to its updates.
        offload: whether the teacher's body is on the CPU during updates.
        half: whether autocast computes products in bfloat16.
    """

    student: Blueprint
    teacher: Blueprint | None
    objective: Objective
    regulariser: PretrainLoss
    linear_loss: LinearLoss
    optim: Optim
    sampler: Sampler
    prompt: int
    answer: int
    block: int
    rollouts: int
    minibatch: int
    microbatch_tokens: int
    microbatch_rows: int | None = None
    keep_states: bool = True
    offload: bool = False
    half: bool = False
    layout: Parallel = field(default_factory=Parallel)

    @classmethod
    def of(
        cls,
        settings: Settings,
        student: Network,
        teacher: Network | None,
        *,
        prompt: int,
        answer: int,
        offload: bool,
        half: bool,
    ) -> Case:
        """The sizes of a run of train.py on one device. The settings say no `auto`, see `AutoSizes.fill`; what they
        leave open besides is given."""
        model, regime, regulariser = settings.model, settings.regime, settings.regulariser
        on_policy = isinstance(regime, OnPolicy)
        return cls(
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

    def sized(self, settings: Settings) -> Case:
        """With the batches of these settings, which differ from those of the case in nothing else."""
        return replace(self, **_batches(settings))

    def with_layout(self, layout: Parallel) -> Case:
        return replace(self, layout=layout)

    @property
    def columns(self) -> int:
        """Tokens of a full row that go through the models in an update: the last one is never an input."""
        return self.prompt + self.answer - 1

    @property
    def local_microbatches(self) -> int:
        """How many micro-batches one device runs for one optimizer step."""
        blocks = self.blocks(self.rows)
        return math.ceil(self.local_minibatch / self.rows) + (math.ceil(self.local_blocks / blocks) if blocks else 0)

    def _share(self, rows: int) -> int:
        return math.ceil(rows / self.layout.data_parallel_size)

    @property
    def local_rollouts(self) -> int:
        return self._share(self.rollouts)

    @property
    def local_minibatch(self) -> int:
        return self._share(self.minibatch)

    @property
    def local_blocks(self) -> int:
        return self._share(self.regulariser.batch_size) if self.block else 0

    @property
    def rows(self) -> int:
        """Rows of a full micro-batch of answers."""
        limits = [self.local_minibatch, max(1, self.microbatch_tokens // self.columns), self.microbatch_rows]
        return min(each for each in limits if each)

    def blocks(self, rows: int) -> int:
        """Blocks of a micro-batch of the corpus, where a micro-batch of answers has `rows` rows."""
        tokens = max(self.microbatch_tokens if rows == self.rows else rows * self.columns, 1)
        return min(self.local_blocks, max(1, tokens // self.block)) if self.block else 0

    @property
    def states(self) -> int:
        """Numbers (not bytes) in the teacher's hidden states of a whole rollout, which each device holds in updates."""
        if not self.rollouts or not self.keep_states or self.teacher is None:
            return 0
        return self.rollouts * self.answer * self.teacher.width

    @property
    def state_dtype(self) -> torch.dtype:
        """The type of those states: under autocast CUDA's layer norms give float32."""
        raised = self.half and self.teacher.config.model_type in ("gpt2", "opt")
        return torch.float32 if raised else self.teacher.dtype

    @property
    def decoding_rows(self) -> int:
        return min(self.sampler.batch_size, self.local_rollouts)

    @property
    def teacher_decodes(self) -> bool:
        return self.sampler.alpha > 0


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
