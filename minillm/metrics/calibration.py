"""Are probabilities right as often as they say? Top-label calibration error, accuracy and reliability diagram.

Axes: N records, K labels, C bins, M resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from minillm.errors import DataError
from minillm.metrics.intervals import bootstrap


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
    """`ece`, `accuracy` in [0, 1]; `ece_interval`, `accuracy_interval`: 95%, bootstrap over records; `bins`: of the
    reliability diagram, ascending."""

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
    probabilities_NK: ArrayLike, labels_N: ArrayLike, *, n_bins: int = 10, **options
) -> Calibration:
    """ECE = sum_c n_c / N |accuracy_c - confidence_c| over equal-width bins of the confidence, the largest probability
    of a record (Guo et al. 2017, arXiv 1706.04599); the label chosen is the first with that probability.

    Bins are those of torchmetrics' MulticlassCalibrationError (norm l1): closed below, and a confidence of 1, as
    float32, is in a bin of its own, [1, 1], listed only where it is not empty. With two labels the bins below 1/2 are.
    `options`: see `bootstrap`.

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
    gap_NC = member_NC * (right_N - confidence_N)[:, None]

    def figures(counts_MN: np.ndarray) -> np.ndarray:
        return np.stack([np.abs(counts_MN @ gap_NC).sum(1), counts_MN @ right_N], axis=1) / n

    ((ece, accuracy),) = figures(np.ones((1, n)))
    low, high = bootstrap(n, figures, **options)
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
        ece=float(ece),
        accuracy=float(accuracy),
        ece_interval=(float(low[0]), float(high[0])),
        accuracy_interval=(float(low[1]), float(high[1])),
        bins=tuple(bins if bins[-1].count else bins[:-1]),
        n=n,
    )


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
