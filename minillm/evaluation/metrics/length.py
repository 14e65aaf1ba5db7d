"""Lengths of references, and answers grouped by them. The length of answers: `suite.results.answer_figures`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from minillm.common.errors import DataError

REFERENCE_EDGES = (5, 10)  # [0, 5], [6, 10], [11, inf) tokens, the paper's (section 3.3)
Item = TypeVar("Item")


def reference_length(references: Sequence[str], encode: Callable[[str], Sequence[int]]) -> int:
    """Tokens of the shortest reference under `encode`, the evaluated model's tokenizer without special tokens.

    Raises:
        DataError: no reference.
    """
    if not references:
        raise DataError("a prompt without references has no reference length; leave it out of the length bins")
    return min(len(encode(reference)) for reference in references)


def by_length(
    items: Sequence[Item], lengths: Sequence[int], edges: Sequence[int] = REFERENCE_EDGES
) -> dict[str, list[Item]]:
    """Items (figures of answers, or their row numbers) grouped by length: with the edges (5, 10) the keys "0-5", "6-10"
    and "11+", all there in this order, empty or not.

    Raises:
        DataError: items and lengths differ in number, a negative length, or edges that do not ascend from 0.
    """
    edges = list(edges)
    if len(items) != len(lengths):
        raise DataError(f"{len(items)} figures and {len(lengths)} lengths; wanted one length a figure")
    if edges != sorted(set(edges)) or min(edges, default=0) < 0:
        raise DataError(f"edges={edges}: wanted different integers from 0 on, ascending, for example [5, 10]")
    starts = [0, *(edge + 1 for edge in edges)]
    names = [f"{low}-{high}" for low, high in zip(starts, edges, strict=False)] + [f"{starts[-1]}+"]
    bins: dict[str, list[Item]] = {name: [] for name in names}
    for item, length in zip(items, lengths, strict=True):
        if length < 0:
            raise DataError(f"a length of {length} tokens; wanted 0 or more")
        bins[names[sum(length > edge for edge in edges)]].append(item)
    return bins
