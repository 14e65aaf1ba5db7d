"""Exposure bias: how much more a student errs on its own prefixes than on its teacher's (paper, section 3.3).

ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)) x 100, with KL_t = KL[p(. | y_<t, x) || q(. | y_<t, x)]:
R(l) = sum_{t<=l} E_{y ~ q} KL_t and l eps(l) = sum_{t<=l} E_{y ~ p} KL_t (Arora et al. 2022, arXiv 2204.01171).

Axes: B sampled answers, R positions, N prompts, L lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.common.errors import DataError
from minillm.evaluation.metrics.intervals import bootstrap
from minillm.evaluation.metrics.position import PositionMeans, group_means, position_means

MIN_ALIVE = 20
_ROUNDING = 1e-6  # nats a token: in float32, less is the rounding of two equal models


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

    excess: tuple[float | None, ...]
    student_error: tuple[float | None, ...]
    teacher_error: tuple[float | None, ...]
    student: PositionMeans
    teacher: PositionMeans

    @property
    def first_token(self) -> float | None:
        """KL[p || q] of the first generated token, nats. Both sides share its prefix, so that ExAccErr(1) is 0."""
        return self.student.mean[0]


def exposure_curve(student: PrefixKL, teacher: PrefixKL, *, min_alive: int = MIN_ALIVE) -> ExposureCurve:
    """The curve, as long as the longest answer of either model. KL_t is averaged over the answers still alive at t,
    first within a prompt, then over prompts.

    A student equal to its teacher has no value anywhere (0 / 0); models that only emit the end token have one value, 0
    at l = 1; answers that never stop are alive up to the cap.

    Raises:
        DataError: no samples, or the two sides have other prompts. NonFiniteError: a KL inside a mask.
    """
    _check(student, teacher)
    sides = [
        position_means(side.kl_BR, side.mask_BR, side.prompt_B, min_alive=min_alive) for side in (student, teacher)
    ]
    n_lengths = max(len(side.mean) for side in sides)
    sides = [
        PositionMeans(side.mean + (None,) * missing, side.alive + (0,) * missing)
        for side in sides
        for missing in [n_lengths - len(side.mean)]
    ]
    errors = [_sums(side.mean) for side in sides]
    excess = tuple(
        None if None in pair or pair[1] <= length * _ROUNDING else 100 * (pair[0] - pair[1]) / pair[1]
        for length, pair in enumerate(zip(*errors, strict=True), start=1)
    )
    return ExposureCurve(excess, *errors, *sides)


def exposure_interval(
    student: PrefixKL, teacher: PrefixKL, *, min_alive: int = MIN_ALIVE, **options
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """(low, high) of ExAccErr at each length: bootstrap over prompts, each drawn with all its samples of both sides
    (`options`: see `bootstrap`). None where the curve has no value. Raises as `exposure_curve`."""
    curve = exposure_curve(student, teacher, min_alive=min_alive)
    n_lengths = sum(each is not None for each in curve.excess)
    if not n_lengths:
        return curve.excess, curve.excess
    last = max(length for length, each in enumerate(curve.excess, start=1) if each is not None)
    sides = []
    for side in (student, teacher):
        mean_NR, alive_NR = group_means(side.kl_BR, side.mask_BR, side.prompt_B)
        sides.append((mean_NR[:, :last].numpy(), (alive_NR[:, :last] > 0).double().numpy()))

    def excess(counts_MN: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # no prompt alive in a resample: NaN from there on
            own, given = (((counts_MN @ mean) / (counts_MN @ alive)).cumsum(1) for mean, alive in sides)
            return 100 * (own - given) / given

    ends = bootstrap(len(sides[0][0]), excess, **options)
    low, high = (
        tuple(
            None if value is None or length >= last else float(end[length]) for length, value in enumerate(curve.excess)
        )
        for end in ends
    )
    return low, high


def _check(student: PrefixKL, teacher: PrefixKL) -> None:
    prompts = []
    for name, side in (("student", student), ("teacher", teacher)):
        if not side.mask_BR.any():
            raise DataError(f"exposure bias: no sampled token on the {name}'s side; wanted 10 samples a prompt")
        prompts.append(side.prompt_B.unique().cpu())
    if not torch.equal(*prompts):
        raise DataError(
            f"exposure bias: the student's samples answer {len(prompts[0])} prompts, the teacher's {len(prompts[1])}, "
            "and they are not the same; sample both on the same prompts"
        )


def _sums(means: Sequence[float | None]) -> tuple[float | None, ...]:
    """Sums up to each length; from the first position without a mean on there is none."""
    total, sums = 0.0, []
    for mean in means:
        total = None if total is None or mean is None else total + mean
        sums.append(total)
    return tuple(sums)
