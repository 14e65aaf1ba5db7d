"""Cross entropy against tokens and the teacher's soft targets: SFT, KD, SeqKD, the supervised start and L_PT."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minillm.errors import check
from minillm.linear_loss import SOFT_CROSS_ENTROPY, TokenValues
from minillm.types import LossOutput


def mixed_cross_entropy(values: TokenValues, *, kd_ratio: float, n_tokens: int | Tensor) -> LossOutput:
    """(1 - r) CE(ids) + r CE(teacher's distribution), summed over the tokens, over `n_tokens` of the global batch.

    With r = kd_ratio; the soft cross entropy is only needed where r > 0 (word-level KD, paper, section 3.1; the
    published code's L_PT has r = 0.5).
    """
    hard = -values.logprobs_N.sum() / n_tokens
    if kd_ratio == 0:
        return LossOutput(hard, {"cross_entropy": hard.detach()})
    soft = values.soft_cross_entropy_N.sum() / n_tokens
    parts = {"cross_entropy": hard.detach(), "soft_cross_entropy": soft.detach()}
    return LossOutput((1 - kd_ratio) * hard + kd_ratio * soft, parts)


def cross_entropy_wanted(kd_ratio: float) -> tuple[str, ...]:
    """What `mixed_cross_entropy` needs to know about a token beyond log q(y)."""
    return (SOFT_CROSS_ENTROPY,) if kd_ratio > 0 else ()


@dataclass(frozen=True)
class CrossEntropy:
    """The objectives of the supervised regime (paper, section 3.1): kd_ratio 0 is fine-tuning (SFT, also of teacher and
    start), 0.5 the paper's word-level KD; SeqKD is either on the teacher's own answers."""

    kd_ratio: float = 0.0

    def __post_init__(self):
        check((0 <= self.kd_ratio <= 1, f"kd_ratio={self.kd_ratio}: wanted a number in [0, 1]"))

    @property
    def wanted(self) -> tuple[str, ...]:
        return cross_entropy_wanted(self.kd_ratio)

    def loss(self, values: TokenValues, n_tokens: int | Tensor) -> LossOutput:
        """The part of some of the mini-batch's `n_tokens` response tokens."""
        return mixed_cross_entropy(values, kd_ratio=self.kd_ratio, n_tokens=n_tokens)


@dataclass(frozen=True)
class PretrainLoss:
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

    @property
    def wanted(self) -> tuple[str, ...]:
        return cross_entropy_wanted(self.kd_ratio)

    def loss(self, values: TokenValues, n_tokens: int | Tensor) -> LossOutput:
        """The part of some of the step's `n_tokens` corpus tokens."""
        output = mixed_cross_entropy(values, kd_ratio=self.kd_ratio, n_tokens=n_tokens)
        return LossOutput(self.coefficient * output.loss, output.parts)
