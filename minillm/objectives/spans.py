"""Reverse KL from a teacher with tokens of its own, span by span.

Axes: B rows, R response positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from minillm.common.lazy import lazy
from minillm.objectives.contract import SPANS
from minillm.objectives.sampled import Sampled

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout

torch, losses = lazy("torch"), lazy("minillm.losses")


@dataclass(frozen=True)
class SpanReverseKL(Sampled):
    """A policy gradient with the reward log p(span) - log q(span) of each span that begins and ends together in the
    tokens of student and teacher; the end of an answer is a span.

    long_part: A_t is the sum of the rewards of all spans that token t can still change: its own, the later ones, and
        earlier ones that the teacher would read in other tokens after another continuation. The expected gradient is
        then that of sum_y q(y) [log q(y) - log p(the teacher's canonical tokens of text(y))]. False: A_t is the reward
        of its own span.
    baseline: subtract the mean advantage of the other answers of the rollout at the same position. That leaves the
        expectation as it is where no answer is dropped: the mean of a gradient over the kept ones alone is not 0.
    """

    long_part: bool = False
    baseline: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({SPANS})

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        mask_BR, (last_BR, first_BR) = rollout.response_mask_BR, rollout.spans_BR2.unbind(-1)
        rewards_BR = losses.token_rewards(rollout.student_logprobs_BR, rollout.teacher_logprobs_BR, mask_BR)
        advantages_BR = rewards_BR.gather(1, last_BR)
        if self.long_part:
            to_go_BR = rewards_BR.flip(-1).cumsum(-1).flip(-1)
            advantages_BR = to_go_BR.gather(1, first_BR)
        advantages_BR = torch.where(mask_BR, advantages_BR, 0.0)
        if self.baseline:
            others_BR = (mask_BR.sum(0) - 1).clamp(min=1)
            advantages_BR = advantages_BR - mask_BR * (advantages_BR.sum(0) - advantages_BR) / others_BR
        if self.long_part:
            advantages_BR = self.with_gains(advantages_BR, rollout)
        return {"behaviour": rollout.behaviour_logprobs_BR, "advantages": advantages_BR}
