"""Distinct n-grams of generated text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def distinct_n(answers: Iterable[Sequence[int]], n: int) -> float:
    """Share of different n-grams among all n-grams, in [0, 1], pooled over the answers (model tokens); 0 where none is
    long enough."""
    total, seen = 0, set()
    for tokens in answers:
        grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else 0.0
