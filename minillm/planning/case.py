"""What one device does in a round, as plain sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from minillm.objectives import Objective, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import Parallel
from minillm.planning.networks import Blueprint
from minillm.rollout import Sampler


class BuildsOptimizers(Protocol):
    """What of the settings of an optimizer is needed here."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer: ...


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
    optim: BuildsOptimizers
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
