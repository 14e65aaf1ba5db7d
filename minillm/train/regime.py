"""The config group `regime`: where answers come from, and the sizes of the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from minillm.common.errors import check


@dataclass(frozen=True)
class OnPolicy:
    """Answers of the student itself: sizes of the loop, all global (paper: 256 rollouts, mini-batches of 64, 4 inner
    epochs, 5,000 optimizer steps).

    `microbatch_tokens` (rows times columns) and at most `microbatch_size` rows go through the models at a time; they
    change nothing but rounding (in a config `auto` stands for a number, see `train.preview.memory`). teacher_states:
    `keep` the teacher's hidden states of a rollout (tokens x width numbers), so that inner epochs need its head only,
    or `recompute` them by a forward pass in each.
    """

    rollouts: int = 256
    minibatch_size: int = 64
    microbatch_tokens: int | Literal["auto"] = 2048
    microbatch_size: int | None = None
    inner_epochs: int = 4
    max_steps: int = 5000
    teacher_states: Literal["keep", "recompute"] = "keep"

    name: ClassVar = "on_policy"

    def __post_init__(self):
        sizes = ("rollouts", "minibatch_size", "inner_epochs", "max_steps")
        check(
            *((getattr(self, name) > 0, f"{name}={getattr(self, name)}: wanted a positive number") for name in sizes),
            (
                self.microbatch_tokens == "auto" or self.microbatch_tokens > 0,
                f"microbatch_tokens={self.microbatch_tokens}: wanted a positive number, or auto",
            ),
            (
                self.microbatch_size is None or self.microbatch_size > 0,
                f"microbatch_size={self.microbatch_size}: wanted a positive number of rows, or null",
            ),
            (
                self.minibatch_size <= 0 or self.rollouts % self.minibatch_size == 0,
                f"minibatch_size={self.minibatch_size} does not divide rollouts={self.rollouts}; use a divisor",
            ),
        )

    @property
    def steps_per_rollout(self) -> int:
        return self.rollouts // self.minibatch_size * self.inner_epochs

    def steps(self, n_prompts: int) -> int:
        """Number of optimizer steps of the whole run."""
        return self.max_steps


@dataclass(frozen=True)
class Supervised:
    """Answers of the data: `minibatch_size` of them an optimizer step (global), `microbatch_size` through the models at
    a time (of similar length; changes nothing but rounding; `auto` as in `OnPolicy`), for `epochs` passes or
    `max_steps` optimizer steps."""

    minibatch_size: int = 32
    microbatch_size: int | Literal["auto"] = 8
    epochs: float | None = 10
    max_steps: int | None = None

    name: ClassVar = "supervised"
    rollouts: ClassVar = 0
    steps_per_rollout: ClassVar = 1  # each is a round of its own

    def __post_init__(self):
        sizes = ("minibatch_size", "microbatch_size", "epochs", "max_steps")
        given = {name: value for name in sizes if (value := getattr(self, name)) not in (None, "auto")}
        check(
            *((value > 0, f"{name}={value}: wanted a positive number") for name, value in given.items()),
            (
                (self.epochs is None) != (self.max_steps is None),
                f"epochs={self.epochs}, max_steps={self.max_steps}: wanted one of them, the other null, for example "
                "regime.epochs=null",
            ),
            (
                self.microbatch_size in ("auto", 0) or self.minibatch_size % self.microbatch_size == 0,
                f"microbatch_size={self.microbatch_size} does not divide minibatch_size={self.minibatch_size}; use a "
                "divisor",
            ),
        )

    def microbatches(self, devices: int = 1) -> int:
        """Micro-batches of an optimizer step over all `devices`, equally many on each; a divisor of the mini-batch."""
        least = self.minibatch_size // self.microbatch_size
        return next(n for n in range(least, self.minibatch_size + 1) if n % devices == self.minibatch_size % n == 0)

    def steps(self, n_prompts: int) -> int:
        """Number of optimizer steps of the whole run."""
        return self.max_steps or math.ceil(self.epochs * n_prompts / self.minibatch_size)
