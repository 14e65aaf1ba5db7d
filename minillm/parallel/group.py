"""The processes that share the rows of one job, and what they tell one another.

Item i of any list belongs to rank i modulo size. Nothing that is computed depends on whose it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
_BUCKET = 2**25  # numbers that are summed at a time


@dataclass(frozen=True)
class Group:
    """`rank` of `size` processes with the same weights and different rows; every method is called by all of them. Where
    there is only one it gives back what it was given."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Those of this rank."""
        return list(items[self.rank :: self.size])

    def join(self, mine: list[Item]) -> list[Item]:
        """The whole list again, on every rank, from each one's share."""
        if self.size == 1:
            return mine
        shares = [None] * self.size
        dist.all_gather_object(shares, mine, group=self.handle)
        whole = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            whole[rank :: self.size] = share
        return whole

    def join_rows(self, mine: Tensor) -> Tensor:
        """[n, ...] of each rank, all of one shape -> [size * n, ...]: the rows in their order."""
        if self.size == 1:
            return mine
        kind = mine.dtype
        mine = mine.to(torch.uint8) if kind == torch.bool else mine
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, mine.contiguous(), group=self.handle)
        return torch.stack(parts, dim=1).flatten(0, 1).to(kind)

    def from_first(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0 on every rank, written in place."""
        if self.size > 1:
            dist.broadcast(tensor, group=self.handle, group_src=0)
        return tensor

    def largest(self, number: int) -> int:
        """Of all ranks."""
        return max(self.join([number]))

    def total(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Each figure summed over the ranks, in float64."""
        figures = {name: float(value) for name, value in values.items()}
        if self.size == 1 or not figures:
            return figures
        parts = self.join([figures])
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its sum over the ranks, in place; as few and as large messages as memory allows."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for number, tensor in enumerate(tensors):
            bucket.append(tensor)
            last = number == len(tensors) - 1
            if last or tensor.dtype != tensors[number + 1].dtype or sum(t.numel() for t in bucket) >= _BUCKET:
                flat = torch.cat([each.flatten() for each in bucket])
                dist.all_reduce(flat, group=self.handle)
                for each, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    each.copy_(summed.view_as(each))
                bucket = []


ALONE = Group()
