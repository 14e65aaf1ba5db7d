"""The short supervised start before the first rollout (the paper's phase 0, in miniature)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minillm.common.errors import check
from minillm.common.seeding import seed_for
from minillm.rollout import Sampler

if TYPE_CHECKING:
    from minillm.common.types import PromptBatch, Rollout
    from minillm.models import Pair


@dataclass(frozen=True)
class SupervisedStart:
    """The config node `start`: optimizer steps of (1 - kd_ratio) cross entropy + kd_ratio soft-target cross entropy.

    responses: `teacher` samples them at T = 1; `reference` takes those of the data. `minibatch_size` is the number of
    answers in an optimizer step, over all devices.
    """

    steps: int = 0
    learning_rate: float = 5e-5
    warmup_steps: int = 0
    minibatch_size: int = 16
    kd_ratio: float = 1.0
    responses: Literal["teacher", "reference"] = "teacher"

    def __post_init__(self):
        check(
            (self.steps >= 0, f"steps={self.steps}: wanted 0 (no supervised start) or more"),
            (self.learning_rate > 0, f"learning_rate={self.learning_rate}: wanted a number above 0"),
            (self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps}: wanted 0 or more"),
            (self.minibatch_size > 0, f"minibatch_size={self.minibatch_size}: wanted a positive number of answers"),
            (0 <= self.kd_ratio <= 1, f"kd_ratio={self.kd_ratio}: wanted a number in [0, 1]"),
        )

    def rate(self, step: int) -> float:
        """Learning rate of the 0-based `step`: linear warm-up, then linear decay to 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        return self.learning_rate * (self.steps - step) / max(1, self.steps - self.warmup_steps)

    def answers(
        self,
        prompts: PromptBatch,
        pair: Pair,
        sampler: Sampler,
        seed: int,
        *,
        rows: list[int] | None = None,
        keep_hidden: bool = True,
        interrupt: Callable[[], None] | None = None,
    ) -> Rollout:
        """Answers to learn from, to all prompts or these rows of them; with `keep_hidden` a teacher's come with its
        hidden states."""
        from minillm.rollout import decode

        rows = list(range(len(prompts))) if rows is None else rows
        prompts = prompts.rows(rows)
        if self.responses == "teacher":
            seeds = [seed_for(seed, "start", prompts.index, row) for row in rows]
            return decode(
                None,
                pair.teacher,
                prompts,
                seeds=seeds,
                alpha=1.0,
                batch_size=sampler.batch_size,
                max_new_tokens=sampler.max_new_tokens,
                stop_ids=pair.stop_ids,
                pad_id=pair.pad_id,
                keep_hidden=keep_hidden and self.kd_ratio > 0,
                interrupt=interrupt,
            )
        return prompts.answered(prompts.reference_ids_BR, prompts.reference_mask_BR)
