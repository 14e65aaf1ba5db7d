"""The reverse-KL objective of MiniLLM: every switch is an option, the two presets are conf/objective/*.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from minillm.common.errors import check
from minillm.common.lazy import lazy
from minillm.objectives.contract import TEACHER, Objective, TokenLoss

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout

torch, losses, divergences = lazy("torch"), lazy("minillm.losses"), lazy("minillm.divergences")


@dataclass(frozen=True)
class MiniLLM(Objective):
    """Loss whose gradient estimates grad KL[q || p] from sampled answers (paper, equations 2 to 7, Algorithm 1;
    docs/equations.md).

    Options, the paper's value first:
        single_step: the exact token-level reverse KL as its own part. Without it the long part alone.
        skip_current: the long part at t uses R_{t+1}; False counts r_t there as well, as the published code does.
        gamma: discount of later rewards. length_norm: divide by the number of summands.
        reward_scaling, reward_clip: r / scaling, then clipped to +-clip; None is off.
        whitening: of the advantages: none, all (B x T cells, padding included), masked.
        importance: token, w_t = q / p~ (paper), or exact, the product over the prefix.
        single_weight: w on the single part.
        clip: PPO's epsilon. clip_on: weighted_ratio clips ratio * w; ratio leaves w outside (unbiased first step).
        denominator: tokens of the global mini-batch; sequences of it (the paper's M); micro_batch, its own tokens.
    """

    single_step: bool = True
    skip_current: bool = True
    gamma: float = 1.0
    length_norm: bool = True
    reward_scaling: float | None = None
    reward_clip: float | None = None
    whitening: Literal["none", "all", "masked"] = "none"
    importance: Literal["token", "exact"] = "token"
    single_weight: bool = True
    clip: float = 0.2
    clip_on: Literal["weighted_ratio", "ratio"] = "weighted_ratio"
    denominator: Literal["tokens", "sequences", "micro_batch"] = "tokens"

    regimes: ClassVar = ("on_policy",)
    long_part: ClassVar = True

    def __post_init__(self):
        positive = "wanted a number above 0, or null for none"
        check(
            (0 <= self.gamma <= 1, f"gamma={self.gamma}: wanted a number in [0, 1]"),
            (self.clip > 0, f"clip={self.clip}: wanted a number above 0"),
            (
                self.reward_scaling is None or self.reward_scaling > 0,
                f"reward_scaling={self.reward_scaling}: {positive}",
            ),
            (self.reward_clip is None or self.reward_clip > 0, f"reward_clip={self.reward_clip}: {positive}"),
            (
                self.single_step or not self.skip_current,
                "skip_current=true with single_step=false: the reward of each token itself would be lost; wanted "
                "objective.skip_current=false",
            ),
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({TEACHER} if self.single_step else ())

    @property
    def sampled_only(self) -> bool:
        return not self.single_step

    @property
    def per_micro_batch(self) -> bool:
        return self.denominator == "micro_batch"

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        """Weights, rewards and advantages."""
        mask = rollout.sampled_mask_BR
        student, teacher = rollout.student_logprobs_BR, rollout.teacher_logprobs_BR
        weights = (student - rollout.behaviour_logprobs_BR).exp()
        rewards = losses.token_rewards(student, teacher, mask, scaling=self.reward_scaling, clip=self.reward_clip)
        long_weights, single_weights, whole = weights, weights, 1.0
        if self.importance == "exact":
            # Rewards are weighted before they are summed; the long part's own weight is then 1.
            single_weights, reward_weights = losses.prefix_weights(weights, mask)
            rewards, long_weights = rewards * reward_weights, torch.ones_like(weights)
            whole = reward_weights[:, -1:]
        advantages = losses.discounted_returns(
            rewards, mask, gamma=self.gamma, length_norm=self.length_norm, skip_current=self.skip_current
        )
        if self.whitening != "none":
            advantages = losses.whiten(advantages, mask if self.whitening == "masked" else None)
        if rollout.given_B is not None:  # whitening over all cells moves theirs too
            advantages = advantages.masked_fill(rollout.given_B.unsqueeze(-1), 0.0)
        return {
            "advantages": self.with_gains(advantages, rollout, whole),
            "single_weights": single_weights if self.single_weight else torch.ones_like(weights),
            "long_weights": long_weights,
        }

    def normaliser(self, mask_BR: Tensor) -> Tensor:
        return mask_BR.any(-1).sum() if self.denominator == "sequences" else mask_BR.sum()

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> TokenLoss:
        logprobs_N = student_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
        weighted = self.clip_on == "weighted_ratio"
        long_N = losses.clipped_policy_losses(
            logprobs_N,
            constants["old_logprobs"],
            constants["advantages"],
            constants["long_weights"],
            clip=self.clip,
            clip_weighted_ratio=weighted,
        )
        with torch.no_grad():
            ratio_N = (logprobs_N - constants["old_logprobs"]).exp() * (constants["long_weights"] if weighted else 1)
            parts = {"long": long_N, "clipped": ((ratio_N - 1).abs() > self.clip).to(long_N.dtype)}
            if weighted:  # those that the mixture's weights alone clip, before the student has moved
                parts["clipped_by_weight"] = ((constants["long_weights"] - 1).abs() > self.clip).to(long_N.dtype)
        if not self.single_step:
            return TokenLoss(long_N, parts)
        single_N = constants["single_weights"] * divergences.reverse_kl(student_NV, teacher_NV)
        return TokenLoss(long_N + single_N, parts | {"single": single_N})
