"""The reverse-KL objective of MiniLLM: every switch is an option, the two presets are conf/objective/*.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm import losses
from minillm.errors import check
from minillm.linear_loss import REVERSE_KL, TokenValues
from minillm.types import Experience, LossOutput, PolicyTerms, Rollout


@dataclass(frozen=True)
class MiniLLM:
    """Loss whose gradient estimates grad KL[q || p] from sampled answers (paper, equations 2 to 7, Algorithm 1).

    Options (paper's value first; docs/equations.md sets them beside the equations):
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

    def prepare(self, rollout: Rollout) -> Experience:
        """Weights, rewards and advantages, once a rollout, from the student that sampled it; no gradient."""
        mask = rollout.response_mask_BR
        student, teacher = rollout.student_logprobs_BR, rollout.teacher_logprobs_BR
        weights = losses.importance_weights(student, teacher, rollout.alpha)
        rewards = losses.token_rewards(student, teacher, mask, scaling=self.reward_scaling, clip=self.reward_clip)
        long_weights = single_weights = weights
        if self.importance == "exact":
            # Rewards are weighted before they are summed; the long part's own weight is then 1.
            single_weights, reward_weights = losses.prefix_weights(weights, mask)
            rewards, long_weights = rewards * reward_weights, torch.ones_like(weights)
        advantages = losses.discounted_returns(
            rewards, mask, gamma=self.gamma, length_norm=self.length_norm, skip_current=self.skip_current
        )
        if self.whitening != "none":
            advantages = losses.whiten(advantages, mask if self.whitening == "masked" else None)
        return Experience(
            **vars(rollout),
            advantages_BR=advantages,
            single_weights_BR=single_weights if self.single_weight else torch.ones_like(weights),
            long_weights_BR=long_weights,
        )

    def normaliser(self, mask_BR: Tensor) -> Tensor:
        """The denominator of a mini-batch with this response mask (0-d tensor)."""
        return mask_BR.any(-1).sum() if self.denominator == "sequences" else mask_BR.sum()

    @property
    def wanted(self) -> tuple[str, ...]:
        """What the loss needs to know about a token beyond log q(y)."""
        return (REVERSE_KL,) if self.single_step else ()

    def loss(self, values: TokenValues, terms: PolicyTerms, normaliser: Tensor) -> LossOutput:
        """The part of the loss that belongs to these tokens.

        Args:
            values: of the student as it is, at the rollout's temperature.
            terms: constants of the same tokens, from `prepare`.
            normaliser: of the global mini-batch, see `normaliser`.
        """
        long = losses.clipped_policy_loss(
            values.logprobs_N,
            terms.old_logprobs_N,
            terms.advantages_N,
            terms.long_weights_N,
            torch.ones_like(values.logprobs_N, dtype=torch.bool),
            clip=self.clip,
            clip_weighted_ratio=self.clip_on == "weighted_ratio",
            n_tokens=normaliser,
        )
        loss, parts = long, {"long": long.detach()}
        if self.single_step:
            single = (terms.single_weights_N * values.reverse_kl_N).sum() / normaliser
            loss, parts["single"] = long + single, single.detach()
        with torch.no_grad():
            ratio_N = (values.logprobs_N - terms.old_logprobs_N).exp()
            if self.clip_on == "weighted_ratio":
                ratio_N = ratio_N * terms.long_weights_N
            # Over the same denominator as the loss, so that micro-batches add up.
            parts["clipped"] = ((ratio_N - 1).abs() > self.clip).sum() / normaliser
        return LossOutput(loss, parts)
