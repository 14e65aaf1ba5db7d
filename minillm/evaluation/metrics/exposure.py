"""Exposure bias: how much more a student errs on its own prefixes than on its teacher's (paper, section 3.3).

ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)) x 100, with KL_t = KL[p(. | y_<t, x) || q(. | y_<t, x)]:
R(l) = sum_{t<=l} E_{y ~ q} KL_t and l eps(l) = sum_{t<=l} E_{y ~ p} KL_t (Arora et al. 2022, arXiv 2204.01171).

Axes: B sampled answers, R positions, N prompts, M resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    `low`, `high`: interval of ExAccErr. None: no value, because fewer than `min_alive` answers of that side are alive,
    or, for ExAccErr, l eps(l) is no more than rounding."""

    excess: Values
    student_error: Values
    teacher_error: Values
    student: PositionMeans
    teacher: PositionMeans
    low: Values
    high: Values

    @property
    def first_token(self) -> float | None:
        """KL[p || q] of the first generated token, nats. Both sides share its prefix, so ExAccErr(1) is 0."""
        return self.student.mean[0]


@np.errstate(invalid="ignore", divide="ignore")  # NaN: no value, for instance where no prompt of a resample is alive
def exposure_curve(student: PrefixKL, teacher: PrefixKL, *, min_alive: int = 20, **options) -> ExposureCurve:
    """The curve, as long as the longest answer of either model. KL_t is averaged over the answers still alive at t,
    first within a prompt, then over prompts. The interval is a bootstrap over prompts, each drawn with all its samples
    of both sides (`options`: see `bootstrap`).

    A student equal to its teacher has no value anywhere (0 / 0). Models that only emit the end token have one value, 0
    at l = 1. Answers that never stop are alive up to the cap.

    Raises:
        DataError: no samples, or the two sides have other prompts. NonFiniteError: a KL inside a mask.
    """
    given = (student, teacher)
    prompts = [side.prompt_B.unique().tolist() for side in given]
    if prompts[0] != prompts[1] or not all(side.mask_BR.any() for side in given):
        raise DataError(
            f"exposure bias: samples to {len(prompts[0])} prompts by the student and {len(prompts[1])} by the teacher; "
            "wanted samples of both, with at least one token, on the same prompts"
        )
    means = [position_means(side.kl_BR, side.mask_BR, side.prompt_B, min_alive=min_alive) for side in given]
    n = max(len(side.mean) for side in means)
    means = [
        PositionMeans(side.mean + (None,) * (n - len(side.mean)), side.alive + (0,) * (n - len(side.alive)))
        for side in means
    ]
    own_R, given_R = np.array([side.mean for side in means], float).cumsum(1)  # NaN from the first on
    excess_R = np.where(given_R > _ROUNDING * np.arange(1, n + 1), _excess(own_R, given_R), np.nan)
    ends_2R = np.full((2, n), np.nan)
    if last := max(np.flatnonzero(np.isfinite(excess_R)) + 1, default=0):
        sides = []
        for side in given:
            mean_NR, alive_NR = group_means(side.kl_BR, side.mask_BR, side.prompt_B)
            sides.append((mean_NR[:, :last].numpy(), (alive_NR[:, :last] > 0).double().numpy()))

        def excess(counts_MN: np.ndarray) -> np.ndarray:
            return _excess(*(((counts_MN @ mean) / (counts_MN @ alive)).cumsum(1) for mean, alive in sides))

        ends_2R[:, :last] = bootstrap(len(prompts[0]), excess, **options)
        ends_2R[:, np.isnan(excess_R)] = np.nan
    low, high = map(_values, ends_2R)
    return ExposureCurve(_values(excess_R), _values(own_R), _values(given_R), *means, low, high)


def _excess(own: np.ndarray, given: np.ndarray) -> np.ndarray:
    return 100 * (own - given) / given


def _values(values_R: np.ndarray) -> Values:
    return tuple(None if np.isnan(value) else float(value) for value in values_R)
