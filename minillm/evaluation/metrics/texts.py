"""Figures of answers: agreement with references, diversity, and groups by the length of the reference."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeVar

from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer

REFERENCE_EDGES = (5, 10)  # [0, 5], [6, 10], [11, inf) tokens, the paper's (section 3.3)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_tokenizer = cache(lambda: DefaultTokenizer(use_stemmer=True))
Item = TypeVar("Item")


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F measure of the longest common subsequence of stemmed words, the best over the references, x 100.

    rouge-score's words and figures, with memory that grows by words and not by their product. Words are runs of a-z and
    0-9 in lower case, so a text in another script has none. Without a word on either side, or without references, the
    score is 0.
    """
    words = _tokenizer().tokenize(answer)
    return 100 * max((_f_measure(words, _tokenizer().tokenize(reference)) for reference in references), default=0.0)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100 where the answer equals a reference but for case, ASCII punctuation and extra white space, else 0."""
    return 100.0 * (_normalised(answer) in map(_normalised, references))


def distinct_n(answers: Iterable[Sequence[int]], n: int) -> float:
    """Share of different n-grams among all n-grams (Li et al. 2016, arXiv 1510.03055), in [0, 1], pooled over the
    answers (model tokens); 0 where none is long enough."""
    grams = [tuple(tokens[at : at + n]) for tokens in answers for at in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct(answers: Iterable[Sequence[int]]) -> dict[str, float]:
    """distinct_1 to distinct_4, each as `distinct_n`. The share falls as text is added: compare sets of one size."""
    answers = list(answers)
    return {f"distinct_{n}": distinct_n(answers, n) for n in range(1, 5)}


def by_length(
    items: Sequence[Item], lengths: Sequence[int], edges: Sequence[int] = REFERENCE_EDGES
) -> dict[str, list[Item]]:
    """Items (figures of answers, or their row numbers) grouped by length in tokens: with the ascending edges (5, 10)
    the keys "0-5", "6-10" and "11+", all there in this order, empty or not."""
    starts = [0, *(edge + 1 for edge in edges)]
    names = [f"{low}-{high}" for low, high in zip(starts, edges, strict=False)] + [f"{starts[-1]}+"]
    bins: dict[str, list[Item]] = {name: [] for name in names}
    for item, length in zip(items, lengths, strict=True):
        bins[names[sum(length > edge for edge in edges)]].append(item)
    return bins


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _f_measure(answer: list[str], reference: list[str]) -> float:
    """From the length of the longest common subsequence: a row of its table at a time as the bits of an integer
    (Hyyrö 2004)."""
    if not answer or not reference:
        return 0.0
    places: dict[str, int] = {}
    for place, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(reference)) - 1
    for word in answer:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & full
    common = len(reference) - row.bit_count()
    return fmeasure(common / len(answer), common / len(reference))
