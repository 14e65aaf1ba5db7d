"""The sizes of the on-policy loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.errors import check


@dataclass(frozen=True)
class OnPolicy:
    """The config group `regime`: sizes of the loop, all global (paper: 256 rollouts, mini-batches of 64, 4 inner
    epochs, 5,000 optimizer steps).

    `microbatch_tokens` (rows times columns) and at most `microbatch_size` rows go through the models at a time; they
    change nothing but rounding. teacher_states: `keep` the teacher's hidden states of a rollout (tokens x width
    numbers), so that inner epochs need its head only, or `recompute` them by a forward pass in each.
    """

    rollouts: int = 256
    minibatch_size: int = 64
    microbatch_tokens: int = 2048
    microbatch_size: int | None = None
    inner_epochs: int = 4
    max_steps: int = 5000
    teacher_states: Literal["keep", "recompute"] = "keep"

    def __post_init__(self):
        sizes = ("rollouts", "minibatch_size", "microbatch_tokens", "inner_epochs", "max_steps")
        check(
            *((getattr(self, name) > 0, f"{name}={getattr(self, name)}: wanted a positive number") for name in sizes),
            (
                self.microbatch_size is None or self.microbatch_size > 0,
                f"microbatch_size={self.microbatch_size}: wanted a positive number of rows, or null",
            ),
        )
        check(
            (
                self.rollouts % self.minibatch_size == 0,
                f"minibatch_size={self.minibatch_size} does not divide rollouts={self.rollouts}; use a divisor",
            )
        )

    @property
    def steps_per_rollout(self) -> int:
        return self.rollouts // self.minibatch_size * self.inner_epochs
