"""Micro-batches of about as many tokens each: rows of similar length together, flush left, next to no padding.

Axes: B rows of a micro-batch, S its columns, N its counted response tokens, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.profiler import record_function

from minillm.common.types import LossOutput, Rollout
from minillm.models import LanguageModel
from minillm.models.loaded import one_of
from minillm.objectives import TEACHER, Objective
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss


@dataclass(frozen=True)
class MicroBatch:
    """Rows of `rollout`, prompt and response without a gap from column 0; the last token is nobody's input."""

    rollout: Rollout
    rows_B: Tensor
    ids_BS: Tensor
    state_N: Tensor  # where in [B * S] the state is that predicts each counted token
    token_N: Tensor  # where in [rows * R] of the rollout that token is
    number: int | None = None  # of the teacher of all rows, see `Rollout.teachers_B`
    teacher: MicroBatch | None = None  # the same answers after the teacher's own prompts

    def __len__(self) -> int:
        return len(self.token_N)

    def take(self, values: Tensor) -> Tensor:
        """[rows, R, ...] of the rollout -> [N, ...]."""
        return values.flatten(0, 1)[self.token_N]

    def side(self, model: LanguageModel, temperature: float = 1.0) -> Side:
        """By a forward pass of the model; of several teachers that of these rows."""
        model, token_N = one_of(model, self.number), self.take(self.rollout.response_ids_BR)
        return Side(model.states(self.ids_BS, self.state_N, token_N), model.head(temperature))

    def teacher_side(self, teacher: LanguageModel, temperature: float = 1.0) -> Side:
        """By the hidden states of the rollout, or by a forward pass where it has none."""
        if self.rollout.teacher_hidden_BRH is not None:
            hidden_NH, own = self.take(self.rollout.teacher_hidden_BRH), one_of(teacher, self.number)
            head = own.head(temperature)
            return Side(hidden_NH if own is teacher else hidden_NH[:, : head.weight_VH.shape[1]], head)
        with torch.no_grad():
            return self.for_teacher.side(teacher, temperature)

    @property
    def for_teacher(self) -> MicroBatch:
        """As the teacher sees it."""
        return self if self.teacher is None else self.teacher

    def loss(
        self,
        linear_loss: LinearLoss,
        objective: Objective,
        student: LanguageModel,
        teacher: LanguageModel | Side | None,
        normaliser: int | Tensor,
        temperature: float = 1.0,
    ) -> LossOutput:
        """The objective over the counted tokens, divided by the normaliser, with a gradient to the student. The teacher
        runs only where the rollout does not have its hidden states, and where it is not a Side already."""
        if not isinstance(teacher, Side):
            teacher = self.teacher_side(teacher, temperature) if TEACHER in objective.needs else None
        ids_N = self.take(self.rollout.response_ids_BR)
        constants = {name: self.take(each) for name, each in getattr(self.rollout, "constants", {}).items()}
        with record_function("update: student"):
            student_side = self.side(student, temperature)
        with record_function("update: heads and loss"):
            return linear_loss(objective, student_side, teacher, ids_N, constants, normaliser=normaliser)


def micro_batches(
    rollout: Rollout, max_tokens: int, max_rows: int | None = None, *, shares: int = 1
) -> list[MicroBatch]:
    """All rows of a rollout that have an answer, those of one teacher, the shortest first; at most `max_rows` of them,
    and at most `max_tokens` in rows times columns where a single row allows it. shares: number of devices that share
    the micro-batches; each is then small enough that no device waits."""
    prompt, teacher_prompt = (each.prompt_mask_BP.sum(-1).tolist() for each in (rollout, rollout.for_teacher))
    # By the mask itself: a token that does not count may stand before one that does.
    counted = [[place for place, counts in enumerate(row) if counts] for row in rollout.response_mask_BR.tolist()]
    longer = map(max, prompt, teacher_prompt)
    lengths = [p + places[-1] if places else 0 for p, places in zip(longer, counted, strict=True)]
    numbers = [None] * len(rollout) if rollout.teachers_B is None else rollout.teachers_B.tolist()
    rows = sorted(filter(counted.__getitem__, range(len(rollout))), key=lambda row: (numbers[row] or 0, lengths[row]))
    divide = partial(_groups, rows, lengths, numbers, max_rows)
    groups = divide(max_tokens)
    if shares > 1:
        rounds = -(-len(groups) // shares)
        too_few, enough = 0, max_tokens
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            fits = len(divide(middle)) <= rounds * shares
            too_few, enough = (too_few, middle) if fits else (middle, enough)
        groups = divide(enough)
    micros = [replace(_micro_batch(rollout, rows, prompt, counted), number=numbers[rows[0]]) for rows in groups]
    if (seen := rollout.for_teacher) is rollout:
        return micros
    return [
        replace(micro, teacher=replace(_micro_batch(seen, rows, teacher_prompt, counted), number=micro.number))
        for micro, rows in zip(micros, groups, strict=True)
    ]


def _groups(rows: list[int], lengths: list[int], numbers: list, max_rows: int | None, max_tokens: int) -> list[list]:
    groups: list[list[int]] = []
    for row in rows:
        full = groups and (
            (len(groups[-1]) + 1) * lengths[row] > max_tokens
            or (max_rows and len(groups[-1]) == max_rows)
            or numbers[groups[-1][0]] != numbers[row]
        )
        if not groups or full:
            groups.append([])
        groups[-1].append(row)
    return groups


def _micro_batch(rollout: Rollout, rows: list[int], prompt: list[int], counted: list[list[int]]) -> MicroBatch:
    device = rollout.response_ids_BR.device
    n_prompt, n_response = rollout.prompt_ids_BP.shape[1], rollout.response_ids_BR.shape[1]
    width = max(prompt[row] + counted[row][-1] for row in rows)
    # Index arithmetic on the host, where the lengths are: nothing waits for an accelerator.
    column_BS = torch.tensor([[n_prompt - prompt[row]] for row in rows]) + torch.arange(width)
    column_BS = column_BS.clamp(max=n_prompt + n_response - 1).to(device, non_blocking=True)
    states, tokens = [], []
    for at, row in enumerate(rows):
        states += [at * width + prompt[row] - 1 + place for place in counted[row]]
        tokens += [row * n_response + place for place in counted[row]]
    rows_B, state_N, token_N = (
        torch.tensor(each, dtype=torch.long).to(device, non_blocking=True) for each in (rows, states, tokens)
    )
    ids_BS = torch.cat([rollout.prompt_ids_BP[rows_B], rollout.response_ids_BR[rows_B]], dim=1).gather(1, column_BS)
    return MicroBatch(rollout, rows_B, ids_BS, state_N, token_N)
