"""The config node `reward`: a number for each answer, from a function of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hydra.utils import get_object

from minillm.common.errors import check, first_line
from minillm.models.vocabulary import answer_text

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout
    from minillm.data import Record
    from minillm.models import Pair
    from minillm.parallel import Group


@dataclass(frozen=True)
class Reward:
    """`function`: import path of a function (record: minillm.data.Record, answer: str) -> number; None for no reward.
    `weight`: the loss is the objective's minus weight times the expected reward (KDRL, arXiv 2506.02208)."""

    function: str | None = None
    weight: float = 1.0

    def __post_init__(self):
        if self.function is not None:
            self._load()

    def _load(self) -> Callable[[Record, str], float]:
        try:
            found = get_object(self.function)
        except (ImportError, ValueError, AttributeError) as error:
            found = first_line(error.__cause__ or error)
        wanted = f"function={self.function!r}: wanted the import path of a function (record, answer) -> number"
        check((callable(found), f"{wanted}, got {found!r}"))
        return found

    def of(self, record: Record, answer: str) -> float | str:
        """The reward; if there is none, a text that says why."""
        try:
            value = self._load()(record, answer)
            if math.isfinite(value):
                return float(value)
            what = f"gave {value!r}"
        except Exception as error:  # a user's function may raise anything
            what = f"raised {type(error).__name__}: {first_line(error)}"
        return f"reward.function={self.function} {what} for the answer {answer[:200]!r} to {record.id}; wanted a number"

    def added(
        self,
        rollout: Rollout,
        records: Sequence[Record],
        pair: Pair,
        answers_per_prompt: int,
        group: Group,
    ) -> Rollout:
        """The rollout with the reward of each answer; each rank of `group` asks for its share. Raises ConfigError: the
        function gives none."""
        found = []
        for row in group.share(range(len(rollout))):
            ids = rollout.response_ids_BR[row][rollout.response_mask_BR[row]]
            text = answer_text(pair.tokenizer, ids.tolist(), pair.stop_ids)
            given = not len(ids) or (rollout.given_B is not None and bool(rollout.given_B[row]))  # or dropped
            found.append(0.0 if given else self.of(records[int(rollout.records_B[row])], text))
        found = group.join(found)
        check(*((False, each) for each in found if isinstance(each, str)))
        rewards_B = rollout.student_logprobs_BR.new_tensor(found)
        return replace(rollout, rewards_B=rewards_B, gains_B=self.gains(rewards_B, answers_per_prompt))

    def gains(self, rewards_B: Tensor, answers_per_prompt: int) -> Tensor:
        """[B]: weight times (reward - mean reward of the other answers to the prompt). Answers to one prompt are in
        neighbouring rows. The mean does not depend on the answer itself, so the gradient stays unbiased."""
        rewards_PA = rewards_B.view(-1, answers_per_prompt)
        others_PA = (rewards_PA.sum(-1, keepdim=True) - rewards_PA) / (answers_per_prompt - 1)
        return self.weight * (rewards_PA - others_PA).flatten()
