"""What models say about answers that are already there.

Axes: B rows, R response positions, H hidden width, N counted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.common.console import tracked
from minillm.common.types import Experience, Rollout
from minillm.models import LanguageModel
from minillm.models.loaded import kept_states
from minillm.objectives import COSTS, Objective
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout.micro_batch import MicroBatch, micro_batches

_TOP = 16  # most probable tokens whose overlap is measured


@torch.no_grad()
def prepared(rollout: Rollout, objective: Objective) -> Experience:
    """The rollout with the objective's constants, and with `old_logprobs`."""
    constants = {"old_logprobs": rollout.student_logprobs_BR} | objective.prepare(rollout)
    return Experience(**vars(rollout), constants=constants)


@torch.no_grad()
def _for_each_token(
    rollout: Rollout, max_tokens: int, values: Callable[[MicroBatch], tuple[Tensor, ...]]
) -> list[Tensor]:
    """Put together as [B, R, ...] what `values` gives as [N, ...] for each micro-batch; 0 outside the mask."""
    n_rows, n_columns = rollout.response_mask_BR.shape
    whole: list[Tensor] = []
    for micro in tracked(micro_batches(rollout, max_tokens), f"Scoring {n_rows} answers"):
        found = values(micro)
        whole = whole or [each.new_zeros(n_rows * n_columns, *each.shape[1:]) for each in found]
        for each, part in zip(whole, found, strict=True):
            each[micro.token_N] = part
    return [each.unflatten(0, (n_rows, n_columns)) for each in whole]


def answer_logprobs(
    model: LanguageModel,
    rollout: Rollout,
    linear_loss: LinearLoss,
    *,
    max_tokens: int,
    keep_hidden: bool = False,
    alike: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor | None]:
    """[B, R] log-probs of the answers' tokens under a model at the rollout's temperature, 0 outside the mask; and with
    `keep_hidden` the model's hidden states [B, R, H] there. `max_tokens` go through the model at a time. `alike`: see
    `LinearLoss.logprobs`."""

    def values(micro: MicroBatch) -> tuple[Tensor, ...]:
        side = micro.side(model, rollout.temperature)
        logprobs_N = linear_loss.logprobs(side, micro.take(rollout.response_ids_BR), alike)
        return (logprobs_N, kept_states(model, side.hidden_NH)) if keep_hidden else (logprobs_N,)

    logprobs_BR, *hidden = _for_each_token(rollout, max_tokens, values)
    return logprobs_BR, hidden[0] if hidden else None


def with_teacher(
    rollout: Rollout, teacher: LanguageModel, linear_loss: LinearLoss, *, max_tokens: int, keep_hidden: bool = True
) -> Rollout:
    """The rollout with the teacher's log-probs and, with `keep_hidden`, hidden states, by one forward pass if decoding
    left none. `max_tokens` go through the teacher at a time."""
    if rollout.teacher_logprobs_BR is not None:
        return rollout
    limits = dict(max_tokens=max_tokens, keep_hidden=keep_hidden)
    logprobs, hidden = answer_logprobs(teacher, rollout.for_teacher, linear_loss, **limits)
    return replace(rollout, teacher_logprobs_BR=logprobs, teacher_hidden_BRH=hidden)


def with_costs(
    rollout: Rollout,
    student: LanguageModel,
    teacher: LanguageModel,
    objective: Objective,
    linear_loss: LinearLoss,
    *,
    max_tokens: int,
) -> Rollout:
    """The rollout with the objective's costs of each token, by one forward pass of the student; unchanged unless the
    objective needs them. The teacher runs only where the rollout does not have its hidden states."""
    if COSTS not in objective.needs:
        return rollout

    def values(micro: MicroBatch) -> tuple[Tensor]:
        sides = (micro.side(student, rollout.temperature), micro.teacher_side(teacher, rollout.temperature))
        return (linear_loss.costs(objective, *sides, micro.take(rollout.response_ids_BR)),)

    return replace(rollout, costs_BR=_for_each_token(rollout, max_tokens, values)[0])


@dataclass(frozen=True)
class Alignment:
    """How far a student q is from its teacher p at each answered position, T = 1: exact KL[q || p] and entropies in
    nats; the share of q's 16 most probable tokens that are among p's, and their probability under q. [B, R] each; 0
    outside the mask."""

    reverse_kl_BR: Tensor
    entropy_BR: Tensor
    teacher_entropy_BR: Tensor
    overlap_BR: Tensor
    overlap_mass_BR: Tensor


def rollout_alignment(
    student: LanguageModel, teacher: LanguageModel, rollout: Rollout, linear_loss: LinearLoss, *, max_tokens: int
) -> Alignment:
    """By one forward pass of each model, `max_tokens` at a time."""

    def values(micro: MicroBatch) -> tuple[Tensor, ...]:
        ids_N = micro.take(rollout.response_ids_BR)
        return linear_loss.alignment(micro.side(student), micro.for_teacher.side(teacher), ids_N, _TOP)

    return Alignment(*_for_each_token(rollout, max_tokens, values))


@dataclass(frozen=True)
class Divergence:
    """Student q and teacher p at each answered position, T = 1, nats: log q and log p of the chosen token, and exact
    KL[q || p] and KL[p || q] over the whole vocabulary. [B, R] each; 0 outside the mask."""

    student_logprobs_BR: Tensor
    teacher_logprobs_BR: Tensor
    reverse_kl_BR: Tensor
    forward_kl_BR: Tensor


def rollout_divergence(
    student: LanguageModel, teacher: LanguageModel, rollout: Rollout, linear_loss: LinearLoss, *, max_tokens: int
) -> Divergence:
    """By one forward pass of each model, `max_tokens` at a time."""

    def values(micro: MicroBatch) -> tuple[Tensor, ...]:
        ids_N = micro.take(rollout.response_ids_BR)
        return linear_loss.divergences(micro.side(student), micro.for_teacher.side(teacher), ids_N)

    return Divergence(*_for_each_token(rollout, max_tokens, values))
