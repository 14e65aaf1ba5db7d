"""Which rows a step sees, as a function of its position: a resumed run reads what an uninterrupted one would."""

from __future__ import annotations

from functools import lru_cache

import torch

from minillm.common.seeding import seed_for

_LARGE = 2**20  # rows from which on no permutation is kept in memory


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n_rows: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    return tuple(torch.randperm(n_rows, generator=generator).tolist())


def _scattered(seed: int, epoch: int, n_rows: int, place: int) -> int:
    """Row `place` of a permutation that takes no memory: a Feistel network on the next even number of bits (a bijection
    whatever its round function is), gone through again until it hits a row (cycle walking; Black and Rogaway 2002)."""
    half = max(1, (n_rows - 1).bit_length() + 1 >> 1)
    while True:
        left, right = place >> half, place & (1 << half) - 1
        for turn in range(4):
            left, right = right, left ^ seed_for(seed, "scatter", epoch, turn, right) & (1 << half) - 1
        place = left << half | right
        if place < n_rows:
            return place


def rows_at(seed: int, position: int, count: int, n_rows: int) -> list[int]:
    """`count` rows from `position` on, in an endless stream of passes over n_rows, each in an order of its own."""
    places = [divmod(place, n_rows) for place in range(position, position + count)]
    if n_rows >= _LARGE:
        return [_scattered(seed, epoch, n_rows, place) for epoch, place in places]
    return [_permutation(seed, epoch, n_rows)[place] for epoch, place in places]
