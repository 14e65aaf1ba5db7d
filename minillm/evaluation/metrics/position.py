"""Means of a figure of tokens by their position in the answer, for example the KL to the teacher at the t-th token.

Axes: B answers, R positions, G groups of answers (the samples of one prompt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.common.errors import NonFiniteError


@dataclass(frozen=True)
class PositionMeans:
    """`mean` at positions 1, 2, ... is None where fewer answers than asked for are alive; `alive`: how many are."""

    mean: tuple[float | None, ...]
    alive: tuple[int, ...]


def position_means(
    values_BR: Tensor, mask_BR: Tensor, group_B: Tensor | None = None, *, min_alive: int = 1
) -> PositionMeans:
    """Mean over the answers that have a token at t (their end token counts, what follows does not).

    `group_B`: any integers; the mean is then taken within each group that is alive at t, and over those groups. What
    stands outside the mask is not read. Without a single token both tuples are empty.

    Raises:
        NonFiniteError: a value inside the mask.
    """
    mean_GR, alive_GR = group_means(values_BR, mask_BR, group_B)
    mean_R, alive_R = mean_GR.sum(0) / (alive_GR > 0).sum(0), alive_GR.sum(0).tolist()
    pairs = zip(mean_R.tolist(), alive_R, strict=True)
    return PositionMeans(tuple(mean if alive >= min_alive else None for mean, alive in pairs), tuple(alive_R))


def pooled(parts: Sequence[PositionMeans]) -> PositionMeans:
    """Means over all answers, from means over parts of them that were made without `group_B`."""
    n_positions = max((len(part.mean) for part in parts), default=0)
    sums, alive = [0.0] * n_positions, [0] * n_positions
    for part in parts:
        for position, (mean, n) in enumerate(zip(part.mean, part.alive, strict=True)):
            sums[position] += mean * n
            alive[position] += n
    return PositionMeans(tuple(total / n for total, n in zip(sums, alive, strict=True)), tuple(alive))


def group_means(values_BR: Tensor, mask_BR: Tensor, group_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean within each group at each position, 0 where the group has no token there, and the number of its answers that
    have one: [G, R] float64 and int64, groups in ascending order, positions up to the last that any answer has. Without
    `group_B` each answer is a group. Raises as `position_means`."""
    group_B = torch.arange(len(mask_BR)) if group_B is None else group_B.cpu()
    mask_BR = mask_BR.cpu()[:, : int(mask_BR.any(0).sum())]
    # Filled before any sum: what lies outside the mask may be infinite.
    values_BR = values_BR.detach().cpu().double()[:, : mask_BR.shape[1]].masked_fill(~mask_BR, 0)
    if not values_BR.isfinite().all():
        row, column = (~values_BR.isfinite()).nonzero()[0].tolist()
        raise NonFiniteError(f"answer {row}, position {column + 1}: {values_BR[row, column].item()} is not finite")
    groups, index_B = group_B.unique(return_inverse=True)
    shape = len(groups), mask_BR.shape[1]
    sum_GR = torch.zeros(shape, dtype=torch.float64).index_add_(0, index_B, values_BR)
    alive_GR = torch.zeros(shape, dtype=torch.long).index_add_(0, index_B, mask_BR.long())
    return sum_GR / alive_GR.clamp(min=1), alive_GR
