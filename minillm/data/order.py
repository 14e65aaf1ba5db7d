"""Which rows a step sees, as a function of its position: a resumed run reads what an uninterrupted one would."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from minillm.common.seeding import seed_for


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    return torch.randperm(n_rows, generator=generator)


def rows_at(seed: int, position: int, count: int, n_rows: int, times: int = 1) -> list[int]:
    """`count` rows from `position` on, each `times` times, in an endless stream of passes in orders of their own."""
    places = [divmod(place // times, n_rows) for place in range(position, position + count)]
    return [int(_permutation(seed, epoch, n_rows)[place]) for epoch, place in places]
