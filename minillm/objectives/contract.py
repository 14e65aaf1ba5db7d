"""What an objective is. One class says all of it: no other file knows an objective by its name.

Axes: B rows, R response positions, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout

# In `Objective.needs`:
TEACHER = "teacher"  # its log-probs over the whole vocabulary at each token
START = "start"  # `start_logprobs_BR` of the rollout: log-probs of the tokens under the student at the start
SPANS = "spans"  # `spans_BR2` of the rollout: a teacher with tokens of its own is compared span by span
COSTS = "costs"  # `costs_BR` of the rollout: the values of `costs` at each token, of the student that sampled it


class TokenLoss(NamedTuple):
    """[N] each: what is minimised, summed over tokens and divided by the normaliser; and what is logged beside it,
    summed and divided alike."""

    values_N: Tensor
    parts: dict[str, Tensor] = {}  # noqa: RUF012


class Objective:
    """A loss that is a sum over tokens. `token_loss` is all that a new one has to define."""

    needs: frozenset[str] = frozenset({TEACHER})
    regimes: ClassVar[tuple[str, ...]] = ("on_policy", "supervised")  # whose answers it is for
    sampled_only: bool = False  # all of the loss is a policy gradient: a given answer has nothing to teach
    long_part: bool = False  # it has a policy gradient with later rewards, to which `with_gains` adds a reward
    per_micro_batch = False  # divide by the tokens of a micro-batch; its size then changes the numbers

    @property
    def teacher_tokens(self) -> int | None:
        """How many of the teacher's most probable tokens are enough, with all others as one class and with the log-prob
        of the answer's token. None: the whole distribution."""
        return None if TEACHER in self.needs else 0

    def prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        """[B, R] each: constants of every token, computed once a rollout, without a gradient. The log-probs that the
        rollout carries are of the student that sampled it; in the supervised regime it carries none. A policy gradient
        is 0 outside `rollout.sampled_mask_BR`."""
        return {}

    @staticmethod
    def with_gains(advantages_BR: Tensor, rollout: Rollout, factor: Tensor | float = 1.0) -> Tensor:
        """The advantages plus what the reward of the whole answer adds at each of its tokens, times a factor."""
        if rollout.gains_B is None:
            return advantages_BR
        return advantages_BR + rollout.sampled_mask_BR * (factor * rollout.gains_B.unsqueeze(-1))

    def token_loss(
        self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants: Mapping[str, Tensor]
    ) -> Tensor | TokenLoss:
        """[N]: the loss at each token.

        Args:
            student_NV, teacher_NV: log-probs over the vocabulary, the student's with a gradient; the teacher's are None
                unless `needs` has TEACHER.
            ids_N: the token of the answer.
            constants: [N] each: what `prepare` gave, and `old_logprobs`, log q of the token when it was sampled
                (on-policy).
        """
        raise NotImplementedError

    def costs(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        """[N] of log-probs [N, V], for an objective that needs COSTS."""
        raise NotImplementedError

    def normaliser(self, mask_BR: Tensor) -> Tensor:
        """The denominator (0-d) of a mini-batch with this response mask: by default its tokens."""
        return mask_BR.sum()
