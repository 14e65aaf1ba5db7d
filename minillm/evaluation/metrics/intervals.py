"""How far a figure can be trusted: deviation over seeds, and a bootstrap interval over prompts.

Axes: S seeds, N prompts, M resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minillm.common.errors import DataError

_CELLS = 2**22  # numbers of a block of resamples: 32 MiB
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Spread:
    """`deviation`: sample deviation (n - 1) of the seeds' figures, None with fewer than two; [low, high]: 95% interval
    over prompts; `n`: prompts. Without prompts every figure is None."""

    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


def over_seeds(values_SN: ArrayLike, weights_SN: ArrayLike | None = None, **options) -> Spread:
    """Mean, deviation and interval of a figure that each seed gives for each prompt.

    The mean over seeds is taken per prompt, then prompts are drawn with replacement (`options`: see `bootstrap`).
    `weights_SN` makes the figure a ratio of sums, sum of values / sum of weights: nats over tokens, for example.

    Raises:
        DataError: no seed, ragged rows, values that are not finite, weights that are not positive.
    """
    values_SN = _matrix("values", values_SN)
    weights_SN = np.ones_like(values_SN) if weights_SN is None else _matrix("weights", weights_SN)
    if weights_SN.shape != values_SN.shape or not (weights_SN > 0).all():
        raise DataError(f"weights {weights_SN.shape}: wanted numbers above 0, one for each of values {values_SN.shape}")
    n_seeds, n_prompts = values_SN.shape
    if n_prompts == 0:
        return Spread()
    figures_S = values_SN.sum(1) / weights_SN.sum(1)
    value_N, weight_N = values_SN.mean(0), weights_SN.mean(0)
    low, high = bootstrap(n_prompts, lambda counts_MN: (counts_MN @ value_N) / (counts_MN @ weight_N), **options)
    deviation = float(figures_S.std(ddof=1)) if n_seeds > 1 else None
    return Spread(float(value_N.sum() / weight_N.sum()), deviation, float(low), float(high), n_prompts)


def paired_change(before_N2: ArrayLike, after_N2: ArrayLike) -> tuple[float, float, float]:
    """(change, low, high) of a ratio of sums, nats over tokens for example: (value, weight) of the same prompts twice.
    The prompts of both are drawn together."""
    sums_N4 = np.concatenate([_matrix("before", before_N2), _matrix("after", after_N2)], axis=1)

    def change(counts_MN: np.ndarray) -> np.ndarray:
        value, weight, value_after, weight_after = (counts_MN @ sums_N4).T
        return value_after / weight_after - value / weight

    low, high = bootstrap(len(sums_N4), change)
    return float(change(np.ones((1, len(sums_N4))))[0]), float(low), float(high)


def bootstrap(n: int, statistic: Statistic, *, level: float = 0.95, **options) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (Efron 1979) of a statistic of n prompts: (low, high), each shaped as one figure. NaN says
    that a resample has no value: it is left out. Other arguments and errors: see `resampled`."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(resampled(n, statistic, **options), [tail, 1 - tail], axis=0)
    return low, high


def resampled(n: int, statistic: Statistic, *, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """A statistic of each of M resamples of n prompts, [M, ...]. Equal arguments give equal numbers.

    `statistic` is given counts_MN, how often each prompt was drawn in each of M resamples (float64, rows sum to n), and
    returns [M, ...]. It is called for blocks of resamples.

    Raises:
        DataError: n is 0.
    """
    if n < 1:
        raise DataError("a bootstrap interval of 0 prompts: there is nothing to draw from")
    generator = np.random.default_rng(seed)
    figures = []
    for start in range(0, resamples, step := max(1, _CELLS // n)):
        rows = min(step, resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        figures.append(statistic(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)))
    return np.concatenate(figures)


def _matrix(name: str, values: ArrayLike) -> np.ndarray:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{name}: every seed must have a number for every prompt ({error})") from error
    if matrix.ndim != 2 or not len(matrix) or not np.isfinite(matrix).all():
        raise DataError(f"{name} {matrix.shape}: wanted finite numbers [seeds, prompts], with at least one seed")
    return matrix
