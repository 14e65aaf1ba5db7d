"""What models say about answers that are already there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.common.types import Experience, Rollout
from minillm.models import LanguageModel
from minillm.objectives import Objective
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout.micro_batch import micro_batches
from minillm.rollout.shared_prompt import branches


@torch.no_grad()
def prepared(rollout: Rollout, objective: Objective) -> Experience:
    """The rollout with the objective's constants, and with `old_logprobs`."""
    constants = {"old_logprobs": rollout.student_logprobs_BR} | objective.prepare(rollout)
    return Experience(**vars(rollout), constants=constants)


@torch.no_grad()
def answer_logprobs(
    model: LanguageModel, rollout: Rollout, linear_loss: LinearLoss, *, max_tokens: int, keep_hidden: bool = False
) -> tuple[Tensor, Tensor | None]:
    """[B, R] log-probs of the answers' tokens under a model at the rollout's temperature, 0 outside the mask; and with
    `keep_hidden` the model's hidden states [B, R, H] there. `max_tokens` go through the model at a time."""
    shape = rollout.response_mask_BR.shape
    logprobs = hidden = None
    for micro in micro_batches(rollout, max_tokens):
        side = micro.side(model, rollout.temperature)
        values_N = linear_loss.logprobs(side, micro.take(rollout.response_ids_BR))
        if logprobs is None:
            logprobs = values_N.new_zeros(shape[0] * shape[1])
            hidden = side.hidden_NH.new_zeros(shape[0] * shape[1], side.hidden_NH.shape[1]) if keep_hidden else None
        logprobs[micro.token_N] = values_N
        if keep_hidden:
            hidden[micro.token_N] = side.hidden_NH
    return logprobs.view(shape), hidden.view(*shape, -1) if keep_hidden else None


def with_teacher(
    rollout: Rollout, teacher: LanguageModel, linear_loss: LinearLoss, *, max_tokens: int, keep_hidden: bool = True
) -> Rollout:
    """The rollout with the teacher's log-probs and hidden states, by one forward pass if decoding left none.

    `max_tokens` go through the teacher at a time. keep_hidden=False leaves the hidden states out.
    """
    if rollout.teacher_logprobs_BR is not None:
        return rollout
    logprobs, hidden = answer_logprobs(teacher, rollout, linear_loss, max_tokens=max_tokens, keep_hidden=keep_hidden)
    return replace(rollout, teacher_logprobs_BR=logprobs, teacher_hidden_BRH=hidden)


@torch.no_grad()
def rollout_reverse_kl(
    student: LanguageModel, teacher: LanguageModel, rollout: Rollout, linear_loss: LinearLoss, *, max_tokens: int
) -> Tensor:
    """[B, R]: exact KL[q || p] over the whole vocabulary at each answered position, T = 1; 0 outside the mask."""
    kl_BR = torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_ids_BR.device)
    for micro in micro_batches(rollout, max_tokens):
        sides = micro.side(student), micro.side(teacher)
        values_N = linear_loss.reverse_kl(*sides, micro.take(rollout.response_ids_BR))
        kl_BR = kl_BR.to(values_N)
        kl_BR.view(-1)[micro.token_N] = values_N
    return kl_BR


@dataclass(frozen=True)
class Divergence:
    """Student q and teacher p at each answered position, T = 1, nats: log q and log p of the chosen token, and exact
    KL[q || p] and KL[p || q] over the whole vocabulary. [B, R] each; 0 outside the mask."""

    student_logprobs_BR: Tensor
    teacher_logprobs_BR: Tensor
    reverse_kl_BR: Tensor
    forward_kl_BR: Tensor


@torch.no_grad()
def rollout_divergence(
    student: LanguageModel,
    teacher: LanguageModel,
    rollout: Rollout,
    linear_loss: LinearLoss,
    *,
    max_tokens: int,
    records: list[int] | None = None,
) -> Divergence:
    """By one forward pass of each model, `max_tokens` at a time. `records`: rows with the same one are answers to the
    same prompt, which is read once for all of them."""
    shape = rollout.response_mask_BR.shape
    together = records is not None and len(set(records)) < len(records)
    batches = branches(rollout, records, max_tokens) if together else micro_batches(rollout, max_tokens)
    out = [torch.zeros(shape, device=rollout.response_ids_BR.device) for _ in range(4)]
    for micro in batches:
        ids_N = micro.take(rollout.response_ids_BR)
        found = linear_loss.divergences(micro.side(student), micro.side(teacher), ids_N)
        out = [values_BR.to(values_N) for values_BR, values_N in zip(out, found, strict=True)]
        for values_BR, values_N in zip(out, found, strict=True):
            values_BR.view(-1)[micro.token_N] = values_N
    return Divergence(*out)
