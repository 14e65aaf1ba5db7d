"""Stored answers: those of the data (given), and those of earlier rollouts (replayed).

Axes: B rows, P prompt and R response positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from minillm.common.seeding import seed_for
from minillm.common.types import PromptBatch, Rollout
from minillm.parallel import Group

_KEPT = (
    "prompt_ids_BP", "prompt_mask_BP", "teacher_prompt_ids_BP", "teacher_prompt_mask_BP", "response_ids_BR",
    "response_mask_BR", "behaviour_logprobs_BR", "records_B", "teachers_B",
)  # fmt: skip


@dataclass
class Stored:
    """Chooses the rows of a round that get a stored answer: a function of (seed, round, row) and of `earlier`, the last
    `replay_size` rollouts. All ranks and each checkpoint have `earlier`. Shares: see `Sources`. Rows with the same
    prompt (`answers_per_prompt` neighbours) are chosen together."""

    on_policy: float = 1.0
    replay: float = 0.0
    replay_size: int = 4
    answers_per_prompt: int = 1
    seed: int = 0
    earlier: list[Rollout] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # with a stored answer, in the newest round

    def choose(self, prompts: PromptBatch) -> Rollout | None:
        """Sets `rows`, and returns the stored answers in that order with their prompts, or None if there are none. The
        models have not scored them yet; replayed ones keep their behaviour log-probs."""
        self.rows = []
        if self.on_policy == 1 and not self.replay:
            return None
        n, generator, parts = self.answers_per_prompt, torch.Generator(), []
        generator.manual_seed(seed_for(self.seed, "stored", prompts.index))
        chance = float(torch.rand((), generator=generator, dtype=torch.float64))
        groups = torch.randperm(n_groups := len(prompts) // n, generator=generator)
        given, end = (int(n_groups * (1 - share) + chance) for share in (self.on_policy, self.on_policy - self.replay))
        if given:
            some = prompts.rows(rows_of(groups[:given], n))
            none_BR = torch.zeros_like(some.reference_ids_BR, dtype=torch.float64)
            yes_B = torch.ones_like(some.records, dtype=torch.bool)
            values = dict(behaviour_logprobs_BR=none_BR, given_B=yes_B, records_B=some.records)
            parts.append(some.answered(some.reference_ids_BR, some.reference_mask_BR, **values))
        if self.earlier and end > given:
            pool = stacked(self.earlier)
            chosen = torch.randperm(len(pool) // n, generator=generator)[: end - given]
            again, end = pool.rows(rows_of(chosen, n)).to(prompts.ids_BP.device), given + len(chosen)
            parts.append(replace(again, given_B=torch.zeros_like(again.records_B, dtype=torch.bool)))
        self.rows = rows_of(groups[: end if self.earlier else given], n).tolist()
        return stacked(parts) if parts else None

    def among(
        self, drawn: Rollout, drawn_rows: list[int], stored: Rollout, wanted: list[int], score: Callable
    ) -> Rollout:
        """The `wanted` rows: the stored answer of a row if there is one, else the drawn one. `score` adds both models'
        log-probs to stored answers. The behaviour log-probs of a given answer are the student's: its weight is 1."""
        drawn = replace(drawn, given_B=torch.zeros_like(drawn.records_B, dtype=torch.bool))
        places = [at for at, row in enumerate(self.rows) if row in wanted]
        if not places:
            return drawn
        stored = score(replace(stored.rows(places), temperature=drawn.temperature))
        own_BR, near_BR = stored.student_logprobs_BR, torch.zeros_like(stored.response_mask_BR)
        behaviour_BR = torch.where(stored.given_B.unsqueeze(-1), own_BR, stored.behaviour_logprobs_BR.to(own_BR))
        stored = replace(stored, behaviour_logprobs_BR=behaviour_BR, near_edge_BR=near_BR)
        # If a row has both, the stored answer is used: the drawn one was only a dummy.
        last = {row: at for at, row in enumerate([*drawn_rows, *(self.rows[at] for at in places)])}
        return stacked([drawn, stored]).rows([last[row] for row in wanted]).trimmed()

    def keep(self, rollout: Rollout) -> None:
        """Add the answers that were drawn in the newest round to `earlier`, in host memory."""
        drawn = [row for row in range(len(rollout)) if row not in self.rows]
        if self.replay and drawn:
            few = Rollout(**{name: getattr(rollout, name) for name in _KEPT}).rows(drawn).to("cpu").trimmed()
            self.earlier = [*self.earlier, few][-self.replay_size :]


def stacked(parts: list[Rollout]) -> Rollout:
    """The rows of all parts, concatenated and padded to the widest. Types are those of the first part; fields that it
    does not have are left out."""
    whole = {}
    for each in fields(parts[0]):
        values = [getattr(part, each.name) for part in parts]
        if isinstance(values[0], Tensor):
            width = max(value.shape[min(1, value.dim() - 1)] for value in values)
            whole[each.name] = torch.cat([widened(value, width, each.name).to(values[0]) for value in values])
    return Rollout(**whole, temperature=parts[0].temperature)


def widened(value: Tensor, width: int, name: str) -> Tensor:
    """A field of a rollout, padded to `width` prompt or response positions."""
    short = width - value.shape[1] if value.dim() > 1 else 0
    return pad(value, (0, 0) * (value.dim() - 2) + ((short, 0) if name.endswith("_BP") else (0, short)))


def rows_of(groups: Tensor, n: int) -> Tensor:
    """The row numbers of these groups of n neighbouring rows."""
    return (groups.unsqueeze(-1) * n + torch.arange(n)).flatten()


def joined(mine: Rollout, group: Group) -> Rollout:
    """The whole rollout on every rank; `mine` are this rank's rows, the same number on each rank."""
    if group.size == 1:
        return mine
    response = group.largest(mine.response_ids_BR.shape[1])
    whole: dict[str, Tensor] = {}
    for each in fields(mine):
        value = getattr(mine, each.name)
        if isinstance(value, Tensor):
            width = group.largest(value.shape[1]) if each.name.endswith("_BP") else response
            whole[each.name] = group.join_rows(widened(value, width, each.name))
    # The ids in padding are never read: the mask, made once, says what counts.
    return replace(mine, **whole).trimmed()
