"""What a run will do, as plain numbers."""

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
    """

    steps: int
    round_size: int
    minibatch_size: int
    answer_tokens: int
    rounds: int
    start_steps: int = 0
    start_rounds: int = 0
    sampler: Sampler | None = None
    learns_references: bool = True
    corpus_rows: int = 0

    @classmethod
    def on_policy(cls, regime: OnPolicy, start: SupervisedStart, sampler: Sampler, corpus_rows: int = 0) -> Work:
        return cls(
            steps=regime.max_steps,
            round_size=regime.rollouts // sampler.answers_per_prompt,
            minibatch_size=regime.minibatch_size,
            answer_tokens=sampler.max_new_tokens,
            rounds=math.ceil(regime.max_steps / regime.steps_per_rollout),
            start_steps=start.steps,
            start_rounds=math.ceil(start.steps * start.minibatch_size / regime.rollouts),
            sampler=sampler,
            learns_references=start.steps > 0 and start.responses == "reference",
            corpus_rows=corpus_rows,
        )

    @classmethod
    def supervised(cls, regime: Supervised, n_prompts: int, answer_tokens: int) -> Work:
        steps, size = regime.steps(n_prompts), regime.minibatch_size
        return cls(steps, size, size, answer_tokens, rounds=steps)

    @property
    def prompts_seen(self) -> int:
        """Those of the start included."""
        return (self.rounds + self.start_rounds) * self.round_size
