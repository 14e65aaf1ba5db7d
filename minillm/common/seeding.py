"""Randomness as a function of position, so that a resumed or re-split run draws the same numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from minillm.common.lazy import lazy

if TYPE_CHECKING:
    from torch import Tensor

torch = lazy("torch")


def seed_for(base: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for `purpose` at `position` (for example rollout and row); independent of rank and batch.

    Equal arguments give equal seeds on every machine (BLAKE2b, not Python's salted hash).
    """
    key = ":".join([str(base), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def row_uniforms(seeds: list[int], n_tokens: int) -> Tensor:
    """[B, T] float64 draws in [0, 1). Row b has its own stream `seeds[b]`: its answer does not depend on its batch."""
    generator = torch.Generator()
    rows = [torch.rand(n_tokens, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, n_tokens, dtype=torch.float64)
