"""How long the run will take, from a few decoding steps and one forward and backward pass made before the first step.

Saving, and sums over devices, are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from minillm.common.machine import Phases
from minillm.common.numbers import duration
from minillm.common.types import Rollout
from minillm.data import PromptSet
from minillm.models import LanguageModel
from minillm.rollout import decode
from minillm.train.settings import Settings

_STEPS = 6  # tokens of the answers that are timed


@dataclass(frozen=True)
class Pace:
    """Seconds of a model: to `read` one token; of a decoding `step`, and for each `token` that it adds to an answer."""

    read: float = 0.0
    step: float = 0.0
    token: float = 0.0

    @classmethod
    def of(cls, model: LanguageModel, prompts: PromptSet, rows: Sequence[int], n_rows: int) -> Pace:
        """Reading is measured on the prompts of `rows` together, a decoding step with one answer and with `n_rows`
        answers to the first of them."""
        (read, _), (_, one), (_, many) = (_laps(model, prompts, each) for each in (rows, rows[:1], rows[:1] * n_rows))
        token = max(0.0, many - one) / max(1, n_rows - 1)
        return cls(read / sum(len(prompts.prompt_ids[row]) for row in rows), max(0.0, one - token), token)

    def answers(self, n: int, batch: int, prompt: float, answer: float, longest: int) -> float:
        """Seconds for n answers of so many tokens on average, `batch` of them at a time; the last of a batch has about
        1 + 1/2 + ... + 1/batch times as many as the mean."""
        rows = min(batch, n)
        last = min(longest, answer * (math.log(rows) + 0.577 + 0.5 / rows))
        return n * (prompt * self.read + answer * self.token) + ((n / rows - 1) * answer + last) * self.step


def _laps(model: LanguageModel, prompts: PromptSet, rows: Sequence[int]) -> tuple[float, float]:
    """Seconds of reading the prompts, and of a decoding step."""
    batch, clock, ticks = prompts.batch(rows).to(model.device), Phases(model.device), []
    options = dict(seeds=list(range(len(rows))), batch_size=len(rows), max_new_tokens=_STEPS, pad_id=prompts.pad_id)
    # No token ends an answer, so that each step has all rows.
    decode(model, None, batch, stop_ids=(model.n_vocab,), interrupt=lambda: ticks.append(clock.now()), **options)
    first, *laps = (after - before for before, after in pairwise(ticks))
    return max(0.0, first - median(laps)), median(laps)


def mean_length(answers: Rollout, stop_ids: tuple[int, ...], longest: int) -> float:
    """Tokens of an answer of at most `longest`, if each token ends it as often as in `answers`."""
    ids_N = answers.response_ids_BR[answers.response_mask_BR]
    rate = sum(each in stop_ids for each in ids_N.tolist()) / len(ids_N)
    return (1 - (1 - rate) ** longest) / rate if rate else float(longest)


def seconds_of(
    settings: Settings,
    student: Pace,
    teacher: Pace,
    update: float,
    train: PromptSet,
    validation: PromptSet,
    length: Callable[[int], float],
) -> dict[str, float]:
    """Seconds of the run by phase; `update`: of a forward and backward pass, for a token; `length`: of an answer by its
    limit, in tokens."""
    regime, sampler, start = settings.regime, settings.sampler, settings.start
    check = settings.callbacks.get("validation")
    steps, prompt, seconds, n = regime.steps(len(train)), _mean(train.prompt_ids), {}, len(validation)
    supervised, answer, corpus = start.steps * start.minibatch_size, _mean(train.reference_ids), 0.0
    if regime.rollouts:
        limit, regulariser = sampler.max_new_tokens, settings.regulariser
        answer, rounds = length(limit), math.ceil(steps / regime.steps_per_rollout)
        sizes = (regime.rollouts, sampler.batch_size, prompt, answer, limit)
        decoded = bool(sampler.alpha) * rounds + (start.responses == "teacher") * supervised / regime.rollouts
        seconds["rollouts"] = rounds * student.answers(*sizes) + decoded * teacher.answers(*sizes)
        if not sampler.alpha:
            seconds["rollouts"] += rounds * regime.rollouts * (prompt + answer) * teacher.read
        corpus = steps * regulariser.on * regulariser.batch_size * settings.data.block_size
    seconds["updates"] = update * ((steps * regime.minibatch_size + supervised) * (prompt + answer) + corpus)
    if check:
        prompt, reference = _mean(validation.prompt_ids), _mean(validation.reference_ids)
        answer = length(check.max_new_tokens)
        times = 2 + (start.steps > 0) + ((steps - 1) // check.every if check.every else 0)
        sizes = (n, check.batch_size, prompt, answer, check.max_new_tokens)
        scored = (prompt + answer) * (student.read + teacher.read) + (prompt + reference) * student.read
        answers = (1 + check.greedy) * student.answers(*sizes)
        seconds["validation"] = times * (answers + n * scored) + teacher.answers(*sizes)
    return {name: each / settings.strategy.data_parallel_size for name, each in seconds.items()}


def _mean(rows: tuple[tuple[int, ...], ...]) -> float:
    return fmean(map(len, rows))


def time_line(likely: dict[str, float], most: dict[str, float]) -> str:
    """Seconds by phase: with answers as long as the first ones promise, and with answers that reach their limit."""
    whole, longest = sum(likely.values()), sum(most.values())
    text = f"about {duration(whole, 2)} ({', '.join(f'{name} {each / whole:.0%}' for name, each in likely.items())})"
    return f"{text}; {duration(longest, 2)} if no answer ends before its limit" if longest > 1.2 * whole else text
