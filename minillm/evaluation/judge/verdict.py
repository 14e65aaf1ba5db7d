"""What a judge is asked, how its reply is read, and what the scores amount to: the paper's GPT-4 score, pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from statistics import mean, stdev
from typing import Literal

import numpy as np

from minillm.evaluation.metrics.intervals import bootstrap


@dataclass(frozen=True)
class Item:
    """What is rated."""

    id: str
    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True)
class Rating:
    """Scores in [1, 10], None unless `outcome` is rated. malformed: the judge replied, without two scores. failed: no
    reply, for the reason in `problem`; `rejected`: the endpoint does not take this question. `replies`: all of them, as
    they came. `asked`: how many of them were paid for in this call."""

    id: str
    outcome: Literal["rated", "malformed", "failed"]
    answer: float | None = None
    reference: float | None = None
    replies: tuple[str, ...] = ()
    asked: int = 0
    problem: str | None = None
    rejected: bool = False


@dataclass(frozen=True)
class Ratings:
    """In the order of the items; none is left out."""

    items: tuple[Rating, ...]

    @property
    def scores(self) -> list[tuple[float, float]]:
        """(answer, reference) of the rated items."""
        return [(item.answer, item.reference) for item in self.items if item.outcome == "rated"]

    @property
    def ratio(self) -> float | None:
        """The paper's GPT-4 score: sum of the answers' scores over that of the references', in percent, of the rated
        items; None where there are none."""
        scores = self.scores
        return 100 * sum(answer for answer, _ in scores) / sum(given for _, given in scores) if scores else None

    def counts(self) -> dict[str, int]:
        """items = rated + malformed + failed. asked: replies paid for in this call. from_cache: items with a reply that
        took none. malformed_replies: replies without scores, of rated items too."""
        outcomes = Counter(item.outcome for item in self.items)
        return {
            "items": len(self.items),
            **{outcome: outcomes[outcome] for outcome in ("rated", "malformed", "failed")},
            "asked": sum(item.asked for item in self.items),
            "from_cache": sum(item.asked == 0 and item.outcome != "failed" for item in self.items),
            "malformed_replies": sum(len(item.replies) - (item.outcome == "rated") for item in self.items),
        }

    def first_failure(self) -> str | None:
        """The reason of the first item that failed, and how many items failed for the same; None where none did."""
        problems = [item.problem for item in self.items if item.outcome == "failed"]
        if not problems:
            return None
        return f"{problems[0]} ({problems.count(problems[0])} of the {len(problems)} that failed)"


def swapped(item: Item) -> bool:
    """Judges favour a place: the answer is Assistant 1 for half of the prompts, by a hash, the same for each model."""
    return sha256(json.dumps(item.prompt).encode()).digest()[0] % 2 == 1


# The feedback request is the paper's (its appendix, after Vicuna's); how the texts stand above it is not published.
QUESTION = """\
[Instruction]
{prompt}

[Response of Assistant 1]
{first}

[Response of Assistant 2]
{second}

[Task]
We would like to request your feedback on the performance of two AI assistants in response to the user instruction and \
input displayed above.
Please rate the helpfulness, relevance, accuracy, and level of detail of their responses. Each assistant receives an \
overall score on a scale of 1 to 10, where a higher score indicates better overall performance.
Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, \
respectively. The two scores are separated by a space.
In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential bias and \
ensuring that the order in which the responses were presented does not affect your judgment."""
# Added when a reply held no scores: a judge at temperature 0 would say the same again.
REMINDER = "\n\nBegin with a line that holds only two numbers from 1 to 10, separated by a space, for example: 7 4"

# Possessive (*+): a reply may be a megabyte of blanks, and must not be searched in quadratic time.
_DECORATION = r"[ \t*_`#>\"'()\[\]]*+"
_QUOTES = r"[ \t*_`\"']*+"
_BETWEEN = rf"(?:{_QUOTES}[,;|，、&]{_QUOTES}|[ \t]++and[ \t]++|[ \t*_`\"']++)"
_NUMBER = r"(-?\d+(?:\.\d+)?)(?:[ \t]*/[ \t]*10(?:\.0)?(?![\d.]))?"
_PAIR = re.compile(
    rf"{_DECORATION}(?:(?:overall )?scores?[ \t]*+[:=]{_DECORATION})?"
    rf"{_NUMBER}{_BETWEEN}{_NUMBER}{_DECORATION}\.?[ \t*_`]*+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"\bassistant[ _]?([12])(?:'s)?{_QUOTES}(?:(?:overall )?(?:score|rating))?{_QUOTES}(?:[:=]|\bis\b){_QUOTES}"
    rf"{_NUMBER}(?![\w.]*\d)",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"\A.*</think>|<think>.*\Z", re.DOTALL)  # a template may have opened it, a limit cut it


def read_scores(reply: str) -> tuple[float, float] | None:
    """Scores of Assistant 1 and 2, each in [1, 10], or None where the reply does not say two, or says several.

    Read are, in this order: a first line of two numbers (as asked); one line of two numbers anywhere; "Assistant 1: 8",
    "Assistant 2: 7", in JSON too. A reasoning model's <think> block does not count.
    """
    text = _THOUGHT.sub("", reply).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if pair := _PAIR.fullmatch(lines[0]):
        return _in_range(pair[1], pair[2])
    pairs = {(pair[1], pair[2]) for line in lines if (pair := _PAIR.fullmatch(line))}
    if pairs:
        return _in_range(*pairs.pop()) if len(pairs) == 1 else None
    named = {(match[1], float(match[2])) for match in _NAMED.finditer(text)}
    by_number = dict(named)
    return _in_range(by_number["1"], by_number["2"]) if len(named) == 2 and len(by_number) == 2 else None


def _in_range(first: str | float, second: str | float) -> tuple[float, float] | None:
    scores = float(first), float(second)
    return scores if all(1 <= score <= 10 for score in scores) else None


def score_over_seeds(ratings: Mapping[str, Ratings], **options) -> dict:
    """The score of one set of prompts that was answered with several seeds, in percent.

    `per_seed`: the ratio of each seed, None where nothing was rated. `mean` and sample `deviation` are those of the
    seeds. `low`, `high`: 95% interval by `bootstrap` (`options`) over the `n` rated prompts, each with its mean pair of
    scores over the seeds, as its two scores belong together. None where there is too little.
    """
    per_seed = {seed: own.ratio for seed, own in ratings.items()}
    ratios = [ratio for ratio in per_seed.values() if ratio is not None]
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for item in (item for own in ratings.values() for item in own.items if item.outcome == "rated"):
        by_prompt.setdefault(item.id, []).append((item.answer, item.reference))
    low = high = None
    if by_prompt:
        pairs = [[mean(scores) for scores in zip(*own, strict=True)] for own in by_prompt.values()]
        answer_N, reference_N = np.array(pairs, dtype=np.float64).T
        ends = bootstrap(len(pairs), lambda n_MN: 100 * (n_MN @ answer_N) / (n_MN @ reference_N), **options)
        low, high = map(float, ends)
    deviation = stdev(ratios) if len(ratios) > 1 else None
    figure = {"mean": mean(ratios) if ratios else None, "deviation": deviation, "low": low, "high": high}
    return figure | {"n": len(by_prompt), "per_seed": per_seed}
