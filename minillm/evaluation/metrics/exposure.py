"""Exposure bias: how much more a student errs on its own prefixes than on its teacher's (paper, section 3.3).

ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)) x 100, with KL_t = KL[p(. | y_<t, x) || q(. | y_<t, x)]:
R(l) = sum_{t<=l} E_{y ~ q} KL_t and l eps(l) = sum_{t<=l} E_{y ~ p} KL_t (Arora et al. 2022, arXiv 2204.01171).

Axes: B sampled answers, R positions, N prompts, M resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from minillm.common.errors import DataError
from minillm.evaluation.metrics.intervals import bootstrap
from minillm.evaluation.metrics.position import PositionMeans, group_means, position_means

_ROUNDING = 1e-6  # nats a token: in float32, less is the rounding of two equal models
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class PrefixKL:
    """KL[p || q] in nats at every token of answers that one model sampled; `prompt_B` tells answers of one prompt. The
    first column is the first generated token, whose prefix is the prompt alone."""

    kl_BR: Tensor
    mask_BR: Tensor
    prompt_B: Tensor


@dataclass(frozen=True)
class ExposureCurve:
    """Curves over the lengths l = 1, 2, ...: ExAccErr in percent, R(l) and l eps(l) in nats, and the means
    they add up (`student`: at the student's prefixes, `teacher`: at the teacher's) with the number of answers alive.
    None: no value, because fewer than `min_alive` answers of that side are alive, or, for ExAccErr, l eps(l) is no more
    than rounding."""

    excess: Values
    student_error: Values
    teacher_error: Values
    student: PositionMeans
    teacher: PositionMeans

    @property
    def first_token(self) -> float | None:
        """KL[p || q] of the first generated token, nats. Both sides share its prefix, so ExAccErr(1) is 0."""
        return self.student.mean[0]


def exposure_curve(student: PrefixKL, teacher: PrefixKL, *, min_alive: int = 20) -> ExposureCurve:
    """The curve, as long as the longest answer of either model. KL_t is averaged over the answers still alive at t,
    first within a prompt, then over prompts.

    A student equal to its teacher has no value anywhere (0 / 0). Models that only emit the end token have one value, 0
    at l = 1. Answers that never stop are alive up to the cap.

    Raises:
        DataError: no samples, or the two sides have other prompts. NonFiniteError: a KL inside a mask.
    """
    prompts = [side.prompt_B.unique().tolist() for side in (student, teacher)]
    if prompts[0] != prompts[1] or not (student.mask_BR.any() and teacher.mask_BR.any()):
        raise DataError(
            f"exposure bias: samples to {len(prompts[0])} prompts by the student and {len(prompts[1])} by the teacher; "
            "wanted samples of both, with at least one token, on the same prompts"
        )
    sides = [
        position_means(side.kl_BR, side.mask_BR, side.prompt_B, min_alive=min_alive) for side in (student, teacher)
    ]
    missing = [max(0, len(other.mean) - len(side.mean)) for side, other in zip(sides, reversed(sides), strict=True)]
    sides = [
        PositionMeans(side.mean + (None,) * n, side.alive + (0,) * n) for side, n in zip(sides, missing, strict=True)
    ]
    errors = [tuple(accumulate(side.mean, _plus)) for side in sides]
    excess = tuple(
        None if None in pair or pair[1] <= length * _ROUNDING else 100 * (pair[0] - pair[1]) / pair[1]
        for length, pair in enumerate(zip(*errors, strict=True), start=1)
    )
    return ExposureCurve(excess, *errors, *sides)


def exposure_interval(student: PrefixKL, teacher: PrefixKL, *, min_alive: int = 20, **options) -> tuple[Values, Values]:
    """(low, high) of ExAccErr at each length: bootstrap over prompts, each drawn with all its samples of both sides
    (`options`: see `bootstrap`). None where the curve has no value. Raises as `exposure_curve`."""
    curve = exposure_curve(student, teacher, min_alive=min_alive)
    lengths = [length for length, value in enumerate(curve.excess, start=1) if value is not None]
    if not lengths:
        return curve.excess, curve.excess
    sides = []
    for side in (student, teacher):
        mean_NR, alive_NR = group_means(side.kl_BR, side.mask_BR, side.prompt_B)
        sides.append((mean_NR[:, : lengths[-1]].numpy(), (alive_NR[:, : lengths[-1]] > 0).double().numpy()))

    def excess(counts_MN: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # no prompt alive in a resample: NaN from there on
            own, given = (((counts_MN @ mean) / (counts_MN @ alive)).cumsum(1) for mean, alive in sides)
            return 100 * (own - given) / given

    low, high = bootstrap(len(sides[0][0]), excess, **options)
    low, high = (
        tuple(None if value is None else float(end[at]) for at, value in enumerate(curve.excess)) for end in (low, high)
    )
    return low, high


def _plus(total: float | None, mean: float | None) -> float | None:
    return None if total is None or mean is None else total + mean
