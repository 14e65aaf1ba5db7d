"""What a regime will do, as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minillm.rollout import Sampler
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.start import SupervisedStart


@dataclass(frozen=True)
class Work:
    """`steps` optimizer steps in rounds of `round_size` prompts, after `start_steps` supervised ones in rounds of the
    same size; the last round may be cut.

    Args:
        minibatch_size: answers in an optimizer step. answer_tokens: of the longest answer that the settings allow.
        sampler: what answers the prompts; None where the data gives the answers.
        learns_references: whether answers of the data are trained on.
        corpus_rows: blocks of the corpus in an optimizer step.
        epochs: asked for, of which the last step is filled up; None where steps are.
    """

    steps: int
    steps_per_round: int
    round_size: int
    minibatch_size: int
    answer_tokens: int
    start_steps: int = 0
    start_rounds: int = 0
    sampler: Sampler | None = None
    learns_references: bool = True
    corpus_rows: int = 0
    epochs: float | None = None

    @classmethod
    def on_policy(cls, regime: OnPolicy, start: SupervisedStart, sampler: Sampler, corpus_rows: int = 0) -> Work:
        return cls(
            steps=regime.max_steps,
            steps_per_round=regime.steps_per_rollout,
            round_size=regime.rollouts,
            minibatch_size=regime.minibatch_size,
            answer_tokens=sampler.max_new_tokens,
            start_steps=start.steps,
            start_rounds=math.ceil(start.steps * start.minibatch_size / regime.rollouts),
            sampler=sampler,
            learns_references=start.steps > 0 and start.responses == "reference",
            corpus_rows=corpus_rows,
        )

    @classmethod
    def supervised(cls, regime: Supervised, n_prompts: int, answer_tokens: int) -> Work:
        return cls(
            steps=regime.steps(n_prompts),
            steps_per_round=1,
            round_size=regime.minibatch_size,
            minibatch_size=regime.minibatch_size,
            answer_tokens=answer_tokens,
            epochs=regime.epochs,
        )

    @property
    def rounds(self) -> int:
        return math.ceil(self.steps / self.steps_per_round)

    @property
    def prompts_seen(self) -> int:
        """Those of the start included."""
        return (self.rounds + self.start_rounds) * self.round_size
