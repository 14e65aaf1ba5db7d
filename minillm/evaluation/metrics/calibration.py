"""Are probabilities right as often as they say? Top-label calibration error, accuracy and reliability diagram.

Axes: N records, K labels, C bins, M resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from minillm.common.errors import DataError
from minillm.evaluation.metrics.intervals import resampled


@dataclass(frozen=True)
class Calibration:
    """`ece`, `accuracy` in [0, 1]; `ece_interval`, `accuracy_interval`: 95%, bootstrap over records, that of ECE
    corrected for its bias. `bins`: of the reliability diagram, ascending: the records whose confidence lies in [low,
    high), with their count, mean confidence and the share that is right (None where there are none)."""

    ece: float
    accuracy: float
    ece_interval: tuple[float, float]
    accuracy_interval: tuple[float, float]
    bins: tuple[dict[str, float | None], ...]
    n: int


def label_probabilities(logprobs_NK: Tensor) -> Tensor:
    """Summed log-probs of each label's word -> probabilities renormalised over the labels, [N, K] float64."""
    return torch.softmax(logprobs_NK.double(), dim=-1)


def calibration_figures(
    probabilities_NK: ArrayLike, labels_N: ArrayLike, *, n_bins: int = 10, level: float = 0.95, **options
) -> Calibration:
    """ECE = sum_c n_c / N |accuracy_c - confidence_c| over equal-width bins of the confidence, the largest probability
    of a record (Guo et al. 2017, arXiv 1706.04599); the label chosen is the first with that probability.

    Bins are those of torchmetrics' MulticlassCalibrationError (norm l1): closed below, and a confidence of 1, as
    float32, is in a bin of its own, [1, 1], listed only where it is not empty. With two labels the bins below 1/2 are.
    `options`: see `resampled`.

    Raises:
        DataError: no records, shapes that do not fit, labels out of range, rows that are no distributions.
    """
    probabilities_NK, labels_N = torch.as_tensor(probabilities_NK).cpu(), torch.as_tensor(labels_N).cpu()
    _check(probabilities_NK, labels_N)
    confidence_N, choice_N = probabilities_NK.max(dim=-1)
    # In float32, as torchmetrics does: otherwise what lies on an edge, or next to 1, could be in another bin.
    bin_N = torch.bucketize(confidence_N.float(), torch.linspace(0, 1, n_bins + 1), right=True).numpy() - 1
    confidence_N, right_N = confidence_N.double().numpy(), (choice_N == labels_N).double().numpy()

    n = len(right_N)
    member_NC = (bin_N[:, None] == np.arange(n_bins + 1)).astype(np.float64)
    figures_NF = np.column_stack([member_NC * (right_N - confidence_N)[:, None], right_N])  # a gap a bin, accuracy
    *gap_C, accuracy = figures_NF.mean(0)
    drawn_MF = resampled(n, lambda counts_MN: counts_MN @ figures_NF / n, **options)
    tail = (1 - level) / 2
    ends = np.append(np.linspace(0, 1, n_bins + 1), 1.0).tolist()
    sums_C3 = zip(*((of_N @ member_NC).tolist() for of_N in (np.ones(n), confidence_N, right_N)), strict=True)
    bins = [
        {"low": low, "high": high, "count": int(count), "confidence": sure / count if count else None}
        | {"accuracy": right / count if count else None}
        for low, high, (count, sure, right) in zip(ends[:-1], ends[1:], sums_C3, strict=True)
    ]
    return Calibration(
        ece=float(np.abs(gap_C).sum()),
        accuracy=float(accuracy),
        ece_interval=_ece_interval(np.array(gap_C), drawn_MF[:, :-1], tail),
        accuracy_interval=tuple(np.quantile(drawn_MF[:, -1], [tail, 1 - tail]).tolist()),
        bins=tuple(bins if bins[-1]["count"] else bins[:-1]),
        n=n,
    )


def _ece_interval(gap_C: np.ndarray, drawn_MC: np.ndarray, tail: float) -> tuple[float, float]:
    """A sum of absolute values is too large by the noise in each of them, and in a resample twice. So a test is
    inverted: the interval holds each true ECE under which the one found is between the tails. Its gaps are the most
    likely ones: those found, moved to or from 0 in proportion to their variances. (Test inversion: Carpenter 1999.)"""
    noise_MC = drawn_MC - gap_C
    ece, variance_C = float(np.abs(gap_C).sum()), noise_MC.var(0)
    noisy_C = variance_C > 1e-20  # else what floating point leaves of none

    def true_C(by: float) -> np.ndarray:
        return np.sign(gap_C) * np.maximum(np.abs(gap_C) - by * variance_C, 0)

    def at(share: float, gaps_C: np.ndarray) -> float:
        return float(np.quantile(np.abs(gaps_C + noise_MC).sum(1), share))

    def bound(share: float) -> float:
        """The true ECE of which the one found is that quantile."""
        if at(share, 0 * gap_C) >= ece:
            return 0.0
        left, right = -1 / variance_C.max(), float((np.abs(gap_C)[noisy_C] / variance_C[noisy_C]).max())
        for _ in range(40):
            middle = (left + right) / 2
            left, right = (middle, right) if at(share, true_C(middle)) >= ece else (left, middle)
        return float(np.abs(true_C(left)).sum())

    if not noisy_C.any():
        return ece, ece
    if ece == 0:
        return 0.0, at(1 - tail, gap_C)
    return min(bound(1 - tail), ece), max(bound(tail), ece)


def _check(probabilities_NK: Tensor, labels_N: Tensor) -> None:
    shape = list(probabilities_NK.shape)
    fits = len(shape) == 2 and all(shape) and list(labels_N.shape) == shape[:1] and not labels_N.is_floating_point()
    if fits:
        sums_to_1 = ((probabilities_NK.double().sum(-1) - 1).abs() < 1e-3).all() and (probabilities_NK >= 0).all()
        fits = sums_to_1 and ((labels_N >= 0) & (labels_N < shape[1])).all()
    if not fits:
        raise DataError(
            f"probabilities {shape}, labels {list(labels_N.shape)}: wanted N > 0 distributions over K labels, and N "
            "integers from 0 to K - 1"
        )
