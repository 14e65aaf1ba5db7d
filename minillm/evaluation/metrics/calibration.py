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
class ReliabilityBin:
    """Records whose confidence lies in [low, high): how many, their mean confidence, the share that is right; None
    where there are none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """`ece`, `accuracy` in [0, 1]; `ece_interval`, `accuracy_interval`: 95%, bootstrap over records, that of ECE
    corrected for its bias; `bins`: of the reliability diagram, ascending."""

    ece: float
    accuracy: float
    ece_interval: tuple[float, float]
    accuracy_interval: tuple[float, float]
    bins: tuple[ReliabilityBin, ...]
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
    _check(probabilities_NK, labels_N, n_bins)
    confidence_N, choice_N = probabilities_NK.max(dim=-1)
    # In float32, as torchmetrics does: otherwise what lies on an edge, or next to 1, could be in another bin.
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float32)
    bin_N = torch.bucketize(confidence_N.float(), edges, right=True).numpy() - 1
    confidence_N, right_N = confidence_N.double().numpy(), (choice_N == labels_N).double().numpy()

    n = len(right_N)
    member_NC = (bin_N[:, None] == np.arange(n_bins + 1)).astype(np.float64)
    counts_C, confidence_C, right_C = member_NC.sum(0), confidence_N @ member_NC, right_N @ member_NC
    figures_NF = np.column_stack([member_NC * (right_N - confidence_N)[:, None], right_N])  # a gap a bin, accuracy
    *gap_C, accuracy = figures_NF.mean(0)
    drawn_MF = resampled(n, lambda counts_MN: counts_MN @ figures_NF / n, **options)
    tail = (1 - level) / 2
    ends = np.append(np.linspace(0, 1, n_bins + 1), 1.0).tolist()
    bins = [
        ReliabilityBin(
            ends[c], ends[c + 1], int(count), *((confidence / count, right / count) if count else (None, None))
        )
        for c, (count, confidence, right) in enumerate(
            zip(counts_C.tolist(), confidence_C.tolist(), right_C.tolist(), strict=True)
        )
    ]
    return Calibration(
        ece=float(np.abs(gap_C).sum()),
        accuracy=float(accuracy),
        ece_interval=_ece_interval(np.array(gap_C), drawn_MF[:, :-1], tail),
        accuracy_interval=tuple(np.quantile(drawn_MF[:, -1], [tail, 1 - tail]).tolist()),
        bins=tuple(bins if bins[-1].count else bins[:-1]),
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


def _check(probabilities_NK: Tensor, labels_N: Tensor, n_bins: int) -> None:
    shape = list(probabilities_NK.shape)
    problems = []
    if len(shape) != 2 or not all(shape) or list(labels_N.shape) != shape[:1]:
        problems.append(
            f"probabilities {shape} and labels {list(labels_N.shape)}: wanted [records, labels] and [records], with at "
            "least one record"
        )
    elif not probabilities_NK.is_floating_point() or labels_N.is_floating_point():
        problems.append(
            f"probabilities of type {probabilities_NK.dtype} and labels of type {labels_N.dtype}: wanted fractions and "
            "integers"
        )
    else:
        if (labels_N < 0).any() or (labels_N >= shape[1]).any():
            wrong = labels_N[(labels_N < 0) | (labels_N >= shape[1])][0].item()
            problems.append(f"label {wrong}: wanted 0 to {shape[1] - 1}, one for each column of the probabilities")
        off_N = (probabilities_NK.double().sum(-1) - 1).abs()
        wrong_N = ~(off_N < 1e-3) | (probabilities_NK < 0).any(-1)
        if wrong_N.any():
            row = int(wrong_N.nonzero()[0])
            problems.append(f"record {row}: {probabilities_NK[row].tolist()} is no distribution; wanted it to sum to 1")
    if n_bins < 1:
        problems.append(f"n_bins={n_bins}: wanted a positive number")
    if problems:
        raise DataError("; ".join(problems))
