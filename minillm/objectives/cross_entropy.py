"""Cross entropy against tokens and the teacher's soft targets: SFT, KD, SeqKD, the supervised start and L_PT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from minillm.common.errors import check
from minillm.common.lazy import lazy
from minillm.objectives.contract import TEACHER, Objective, TokenLoss

if TYPE_CHECKING:
    from torch import Tensor

divergences = lazy("minillm.divergences")


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """(1 - r) CE(token) + r CE(teacher's distribution), with r = kd_ratio (paper, section 3.1): 0 is fine-tuning (SFT,
    also of teacher and start), 0.5 the paper's word-level KD and the published code's L_PT; SeqKD is either on the
    teacher's own answers."""

    kd_ratio: float = 0.0

    regimes: ClassVar = ("supervised",)

    def __post_init__(self):
        check((0 <= self.kd_ratio <= 1, f"kd_ratio={self.kd_ratio}: wanted a number in [0, 1]"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({TEACHER} if self.kd_ratio > 0 else ())

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> TokenLoss:
        hard_N = -student_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
        if teacher_NV is None:
            return TokenLoss(hard_N, {"cross_entropy": hard_N})
        soft_N = divergences.cross_entropy(student_NV, teacher_NV)
        parts = {"cross_entropy": hard_N, "soft_cross_entropy": soft_N}
        return TokenLoss((1 - self.kd_ratio) * hard_N + self.kd_ratio * soft_N, parts)


@dataclass(frozen=True)
class PretrainLoss(CrossEntropy):
    """The config group `regulariser`: coefficient * L_PT on a pre-training corpus (paper, Algorithm 1).

    `batch_size` is the number of corpus blocks in one optimizer step, over all devices; coefficient 0 turns it off, and
    so does `enabled`, whatever numbers an experiment sets.
    """

    enabled: bool = True
    coefficient: float = 1.0
    kd_ratio: float = 0.0
    batch_size: int = 64

    def __post_init__(self):
        check(
            (self.coefficient >= 0, f"coefficient={self.coefficient}: wanted 0 (off) or more"),
            (0 <= self.kd_ratio <= 1, f"kd_ratio={self.kd_ratio}: wanted a number in [0, 1]"),
            (self.batch_size > 0, f"batch_size={self.batch_size}: wanted a positive number of blocks"),
        )

    @property
    def on(self) -> bool:
        return self.enabled and self.coefficient > 0

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> TokenLoss:
        values_N, parts = super().token_loss(student_NV, teacher_NV, ids_N, constants)
        return TokenLoss(self.coefficient * values_N, parts)
