"""What one device does in a round, as plain sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from minillm.linear_loss import LinearLoss
from minillm.objectives import CrossEntropy, MiniLLM, PretrainLoss
from minillm.optim import Optim
from minillm.parallel import Parallel
from minillm.planning.networks import Blueprint
from minillm.sampling import Sampler


@dataclass(frozen=True)
class Case:
    """Sizes of the training config, all global; answers are as long as the settings allow.

    Args:
        prompt, answer: tokens of the longest row. block: tokens of a corpus block, 0 without a corpus.
        rollouts: rows of a round, 0 where the data gives the answers; then no `sampler` is used.
        microbatch_rows: at most, whatever `microbatch_tokens` allow.
        keep_states: of the teacher, from the rollout to its updates. offload: its body is away in updates.
        half: products in bfloat16 by autocast.
    """

    student: Blueprint
    teacher: Blueprint | None
    objective: MiniLLM | CrossEntropy
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

    def with_layout(self, layout: Parallel) -> Case:
        return replace(self, layout=layout)

    @property
    def columns(self) -> int:
        """Of a full row in an update: the last token is nobody's input."""
        return self.prompt + self.answer - 1

    @property
    def local_microbatches(self) -> int:
        """Of one optimizer step on one device."""
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
        """Of a full micro-batch."""
        limits = [self.local_minibatch, max(1, self.microbatch_tokens // self.columns), self.microbatch_rows]
        return min(each for each in limits if each)

    def blocks(self, rows: int) -> int:
        """Of a corpus micro-batch where a micro-batch of answers has so many rows."""
        tokens = max(self.microbatch_tokens if rows == self.rows else rows * self.columns, 1)
        return min(self.local_blocks, max(1, tokens // self.block)) if self.block else 0

    @property
    def states(self) -> int:
        """Numbers of the teacher's hidden states that each device holds in updates: those of the whole rollout."""
        if not self.rollouts or not self.keep_states or self.teacher is None:
            return 0
        return self.rollouts * self.answer * self.teacher.config.hidden_size

    @property
    def state_dtype(self) -> torch.dtype:
        """Of those states: under autocast CUDA's layer norms give float32."""
        raised = self.half and self.teacher.config.model_type in ("gpt2", "opt")
        return torch.float32 if raised else self.teacher.dtype

    @property
    def decoding_rows(self) -> int:
        return min(self.sampler.batch_size, self.local_rollouts)

    @property
    def teacher_decodes(self) -> bool:
        return self.sampler.alpha > 0
