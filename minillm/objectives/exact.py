"""Divergences of the full distributions at each position of the answers: exact on-policy distillation, or, on given
answers, its supervised form. One class a divergence; its mathematics is in `minillm.divergences`.

Axes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from minillm.common.errors import check
from minillm.common.lazy import lazy
from minillm.objectives.contract import COSTS, TEACHER, Objective, TokenLoss

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout

torch, losses, divergences = lazy("torch"), lazy("minillm.losses"), lazy("minillm.divergences")


@dataclass(frozen=True)
class Divergence(Objective):
    """The mean divergence over the tokens of the answers. Its gradient goes through the distribution at each position.
    That through the choice of the tokens before it is the long part.

    long_part: add a policy gradient with the divergences at later positions as costs. The whole gradient is then that
        of E_q sum_t D_t, on-policy and at the first step. On-policy only.
    clip: PPO's epsilon in the long part.
    """

    long_part: bool = field(default=False, kw_only=True)
    clip: float = field(default=0.2, kw_only=True)

    def __post_init__(self):
        check((self.clip > 0, f"clip={self.clip}: wanted a number above 0"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({TEACHER, COSTS} if self.long_part else {TEACHER})

    @property
    def regimes(self) -> tuple[str, ...]:
        return ("on_policy",) if self.long_part else Objective.regimes

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        """[N]: the divergence at each position, of log-probs [N, V]."""
        raise NotImplementedError

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        if not self.long_part:
            return {}
        sizes = dict(gamma=1.0, length_norm=False, skip_current=True)
        advantages = losses.discounted_returns(-self.sampled_costs(rollout), rollout.sampled_mask_BR, **sizes)
        weights = (rollout.student_logprobs_BR - rollout.behaviour_logprobs_BR).exp()
        return {"advantages": self.with_gains(advantages, rollout), "weights": weights}

    def sampled_costs(self, rollout: Rollout) -> Tensor:
        """[B, R], 0 outside the mask."""
        return torch.where(rollout.response_mask_BR, rollout.costs_BR, 0.0)

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> TokenLoss:
        values_N = self.costs(student_NV, teacher_NV)
        if not self.long_part:
            return TokenLoss(values_N, {"divergence": values_N})
        logprobs_N = student_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
        sampled = (constants[name] for name in ("old_logprobs", "advantages", "weights"))
        long_N = losses.clipped_policy_losses(logprobs_N, *sampled, clip=self.clip, clip_weighted_ratio=False)
        return TokenLoss(values_N + long_N, {"divergence": values_N, "long": long_N})


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL[q || p]. On the student's own answers: what most people mean by on-policy distillation. The costs of its long
    part are the paper's log q - log p of the sampled token."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({TEACHER})

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.reverse_kl(student_NV, teacher_NV)

    def sampled_costs(self, rollout: Rollout) -> Tensor:
        rewards = (rollout.student_logprobs_BR, rollout.teacher_logprobs_BR, rollout.response_mask_BR)
        return -losses.token_rewards(*rewards)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL[p || q]."""

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.forward_kl(student_NV, teacher_NV)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """GKD's generalised Jensen-Shannon divergence: beta 0 is KL[p || q], beta 1 is KL[q || p]."""

    beta: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check_share("beta", self.beta)

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.jensen_shannon(student_NV, teacher_NV, self.beta)


@dataclass(frozen=True)
class SkewForward(Divergence):
    """DistiLLM's KL[p || alpha p + (1 - alpha) q]."""

    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        _check_skew(self.alpha)

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.skew_forward(student_NV, teacher_NV, self.alpha)


@dataclass(frozen=True)
class SkewReverse(Divergence):
    """DistiLLM's KL[q || (1 - alpha) p + alpha q]."""

    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        _check_skew(self.alpha)

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.skew_reverse(student_NV, teacher_NV, self.alpha)


@dataclass(frozen=True)
class DistiLLM2(Divergence):
    """DistiLLM-2 (arXiv 2503.07067): (2 - balance) `SkewForward` on answers of the data, which are to be the teacher's,
    plus balance `SkewReverse` on the student's. `data.on_policy` is the share of the student's."""

    balance: float = 1.0
    alpha: float = 0.1

    regimes: ClassVar = ("on_policy",)

    def __post_init__(self):
        super().__post_init__()
        check(
            (0 <= self.balance <= 2, f"balance={self.balance}: wanted a number in [0, 2]"),
            (0 < self.alpha < 1, f"alpha={self.alpha}: wanted a number between 0 and 1"),
        )

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        return super().prepare(rollout) | {"given": rollout.response_mask_BR & ~rollout.sampled_mask_BR}

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return self.balance * divergences.skew_reverse(student_NV, teacher_NV, self.alpha)

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> TokenLoss:
        values_N, parts = super().token_loss(student_NV, teacher_NV, ids_N, constants)
        forward_N = (2 - self.balance) * divergences.skew_forward(student_NV, teacher_NV, self.alpha)
        given_N = constants["given"]  # both divergences are finite, so that the one left out adds no gradient
        values_N, divergence_N = (torch.where(given_N, forward_N, each) for each in (values_N, parts["divergence"]))
        return TokenLoss(values_N, parts | {"divergence": divergence_N})


@dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """AKL: forward and reverse KL, weighted by how far q is from p in the head and in the tail of p."""

    mass: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check((0 < self.mass <= 1, f"mass={self.mass}: wanted a share of the teacher's probability above 0, at most 1"))

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.adaptive_kl(student_NV, teacher_NV, self.mass)


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """1/2 sum |p - q|."""

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.total_variation(student_NV, teacher_NV)


@dataclass(frozen=True)
class EntropyAware(Divergence):
    """EOPD: KL[q || p], plus `weight` KL[p || q] where the teacher's entropy is above `threshold` nats. No value of
    either is published, so both must be given."""

    weight: float
    threshold: float

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.weight >= 0, f"weight={self.weight}: wanted 0 or more"),
            (self.threshold >= 0, f"threshold={self.threshold}: wanted nats, 0 or more"),
        )

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.entropy_aware(student_NV, teacher_NV, self.weight, self.threshold)


@dataclass(frozen=True)
class TopK(Divergence):
    """The KL of k + 1 classes: the k most probable tokens of the student, the teacher or both, and all others."""

    k: int = 32
    of: Literal["student", "teacher", "both"] = "teacher"
    kind: Literal["reverse", "forward"] = "reverse"

    def __post_init__(self):
        super().__post_init__()
        check((self.k > 0, f"k={self.k}: wanted a positive number of tokens"))

    @property
    def teacher_tokens(self) -> int | None:
        return self.k if self.of == "teacher" else None

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return divergences.top_k_with_tail(student_NV, teacher_NV, self.k, self.of, self.kind)


def _check_share(name: str, value: float) -> None:
    check((0 <= value <= 1, f"{name}={value}: wanted a number in [0, 1]"))


def _check_skew(alpha: float) -> None:
    check((0 <= alpha < 1, f"alpha={alpha}: wanted a number in [0, 1); 1 compares a model with itself"))
