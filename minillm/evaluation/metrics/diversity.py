"""Distinct n-grams of generated text (Li et al. 2016, arXiv 1510.03055)."""

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


def distinct(answers: Iterable[Sequence[int]], longest: int = 4) -> dict[str, float]:
    """distinct_1 to distinct_`longest`, each as `distinct_n`. Pooled, so a set is compared with one of the same size
    only: the share falls as text is added."""
    answers = list(answers)
    return {f"distinct_{n}": distinct_n(answers, n) for n in range(1, longest + 1)}
