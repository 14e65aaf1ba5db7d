"""Policy gradients that need the teacher's log-prob of the sampled token, and little or nothing else.

Each token has an advantage A_t without a gradient; the loss is PPO's clipped surrogate with ratio q / b, b the
behaviour policy. On the student's own answers, unclipped, its expected gradient is that of the token-level KL[q || p]
at fixed prefixes.

Axes: B rows, R response positions, N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from minillm.common.errors import check
from minillm.common.lazy import lazy
from minillm.objectives.contract import START, TEACHER, Objective, TokenLoss

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout

torch, losses, divergences = lazy("torch"), lazy("minillm.losses"), lazy("minillm.divergences")


@dataclass(frozen=True)
class Sampled(Objective):
    """A_t = log p(y_t) - log q(y_t), without later rewards (Thinking Machines, "On-Policy Distillation").

    clip: PPO's epsilon on the ratio q_now / b; None leaves the ratio as it is.
    """

    clip: float | None = 0.2

    needs: ClassVar[frozenset[str]] = frozenset()
    regimes: ClassVar = ("on_policy",)
    sampled_only: ClassVar = True

    def __post_init__(self):
        check((self.clip is None or self.clip > 0, f"clip={self.clip}: wanted a number above 0, or null for none"))

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        advantages = losses.token_rewards(
            rollout.student_logprobs_BR, rollout.teacher_logprobs_BR, rollout.response_mask_BR
        )
        return {"behaviour": rollout.behaviour_logprobs_BR, "advantages": advantages}

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> TokenLoss:
        logprobs_N = student_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
        advantages_N = self.advantages(student_NV, teacher_NV, ids_N, constants).detach()
        clip, weights_N = math.inf if self.clip is None else self.clip, torch.ones_like(advantages_N)
        sampled = (logprobs_N, constants["behaviour"], advantages_N, weights_N)
        values_N = losses.clipped_policy_losses(*sampled, clip=clip, clip_weighted_ratio=False)
        ratio_N = (logprobs_N.detach() - constants["behaviour"]).exp()
        return TokenLoss(values_N, {"advantage": advantages_N, "clipped": ((ratio_N - 1).abs() > clip).to(ratio_N)})

    def advantages(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> Tensor:
        """[N]"""
        return constants["advantages"]


@dataclass(frozen=True)
class SampledBaseline(Sampled):
    """A_t = log p(y_t) - log q(y_t) + KL[q || p] at t: the mean over tokens is taken off, so that the estimate has less
    variance (vOPD, arXiv 2605.07865). The KL is exact and of the student as it is now."""

    needs: ClassVar[frozenset[str]] = frozenset({TEACHER})

    def advantages(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> Tensor:
        return constants["advantages"] + divergences.reverse_kl(student_NV.detach(), teacher_NV)


@dataclass(frozen=True)
class ImportanceWeighted(Sampled):
    """IW-OPD (arXiv 2606.22600): the advantages of `Sampled` times w_t = 1 + gain (1 - sum_{s<t} |A_s| / sum_s |A_s|):
    early tokens count more. w = 1 where an answer's advantages are all 0."""

    gain: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check((self.gain >= 0, f"gain={self.gain}: wanted 0 or more"))

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        constants = super().prepare(rollout)
        size_BR = constants["advantages"].abs()
        total_B1 = size_BR.sum(-1, keepdim=True)
        before_BR = size_BR.cumsum(-1) - size_BR
        weights_BR = 1 + self.gain * (1 - before_BR / total_B1)
        weights_BR = torch.where(total_B1 > 0, weights_BR, torch.ones_like(weights_BR))
        return constants | {"advantages": constants["advantages"] * weights_BR}


@dataclass(frozen=True)
class Extrapolated(Sampled):
    """G-OPD, ExOPD: A_t = -[log q - log p0 - gain (log p - log p0)] at the sampled token, p0 the student at
    the start, before any step. gain 1 is `Sampled`; above 1 the target lies beyond the teacher, as seen from p0."""

    gain: float = 1.25

    needs: ClassVar[frozenset[str]] = frozenset({START})

    def __post_init__(self):
        super().__post_init__()
        check((self.gain > 0, f"gain={self.gain}: wanted a number above 0"))

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        start, mask = rollout.start_logprobs_BR, rollout.response_mask_BR
        target = start + self.gain * (rollout.teacher_logprobs_BR - start)
        advantages = losses.token_rewards(rollout.student_logprobs_BR, target, mask)
        return {"behaviour": rollout.behaviour_logprobs_BR, "advantages": advantages}
