"""Agreement with references: Rouge-L and exact match, in percent, as in the paper's evaluation."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F measure of the longest common subsequence of stemmed words, the best over the references, x 100."""
    return 100 * max((_scorer().score(reference, answer)["rougeL"].fmeasure for reference in references), default=0.0)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100 where the answer equals a reference but for case, punctuation and extra white space, else 0."""
    return 100.0 * any(_normalised(answer) == _normalised(reference) for reference in references)


def _normalised(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
