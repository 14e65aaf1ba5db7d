"""Cross entropy against tokens and the teacher's soft targets: the supervised start and the L_PT regulariser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minillm.errors import check
from minillm.losses import soft_cross_entropy, token_logprobs
from minillm.types import LossOutput


def mixed_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor | None, ids: Tensor, *, kd_ratio: float, n_tokens: int | Tensor
) -> LossOutput:
    """(1 - r) CE(ids) + r CE(teacher's distribution), summed over [N] tokens, over `n_tokens` of the global batch.

    With r = kd_ratio; student_logits and teacher_logits [N, V], the latter only needed where r > 0 (word-level KD,
    paper, section 3.1; the published code's L_PT has r = 0.5).
    """
    hard = -token_logprobs(student_logits, ids).sum() / n_tokens
    if kd_ratio == 0:
        return LossOutput(hard, {"cross_entropy": hard.detach()})
    soft = soft_cross_entropy(student_logits, teacher_logits).sum() / n_tokens
    parts = {"cross_entropy": hard.detach(), "soft_cross_entropy": soft.detach()}
    return LossOutput((1 - kd_ratio) * hard + kd_ratio * soft, parts)


@dataclass(frozen=True)
class PretrainLoss:
    """The config group `regulariser`: coefficient * L_PT on a pre-training corpus (paper, Algorithm 1).

    `batch_size` is the number of corpus blocks in one optimizer step, over all devices; coefficient 0 turns it off.
    """

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
        return self.coefficient > 0

    def loss(
        self, student_logits: Tensor, teacher_logits: Tensor | None, ids: Tensor, n_tokens: int | Tensor
    ) -> LossOutput:
        """logits [N, V] that predict `ids` [N]; `n_tokens` of the step's whole corpus batch."""
        output = mixed_cross_entropy(student_logits, teacher_logits, ids, kd_ratio=self.kd_ratio, n_tokens=n_tokens)
        return LossOutput(self.coefficient * output.loss, output.parts)
