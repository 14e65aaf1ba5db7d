"""Agreement with references: Rouge-L and exact match, in percent, as in the paper's evaluation."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache

from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@cache
def _tokenizer() -> DefaultTokenizer:
    return DefaultTokenizer(use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F measure of the longest common subsequence of stemmed words, the best over the references, x 100.

    rouge-score's words and figures, with memory that grows by words and not by their product. Words are runs of a-z and
    0-9 after lower case, so that a text in another script has none; without a word on either side, or without
    references, the score is 0.
    """
    words = _tokenizer().tokenize(answer)
    return 100 * max((_f_measure(words, _tokenizer().tokenize(reference)) for reference in references), default=0.0)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100 where the answer equals a reference but for case, ASCII punctuation and extra white space, else 0; 0 without
    references."""
    return 100.0 * any(_normalised(answer) == _normalised(reference) for reference in references)


def _normalised(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def _f_measure(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return 0.0
    common = _longest_common(answer, reference)
    return fmeasure(common / len(answer), common / len(reference))


def _longest_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(other)) - 1
    row = full
    for word in one:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & full
    return len(other) - row.bit_count()
