"""What a model says about answers that are already there: hidden states and log-probs at response positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minillm.losses import token_logprobs
from minillm.models import LanguageModel
from minillm.types import Rollout


def response_hidden(model: LanguageModel, rollout: Rollout) -> Tensor:
    """[B, R, H]: the state at prompt position P - 1 + t predicts response token t. Gradients as the caller has set."""
    n_prompt = rollout.prompt_ids_BP.shape[1]
    hidden_BSH = model.hidden(rollout.ids_BS[:, :-1], rollout.mask_BS[:, :-1])
    return hidden_BSH[:, n_prompt - 1 :]


def response_logits(model: LanguageModel, hidden_BRH: Tensor, mask_BR: Tensor) -> Tensor:
    """[N, V]: logits at the N positions that count only, row after row."""
    return model.logits(hidden_BRH[mask_BR])


@torch.no_grad()
def with_teacher(rollout: Rollout, teacher: LanguageModel, *, batch_size: int) -> Rollout:
    """The rollout with the teacher's hidden states and log-probs, by one forward pass if decoding left none."""
    if rollout.teacher_hidden_BRH is not None:
        return rollout
    mask_BR = rollout.response_mask_BR
    hidden_parts, logprobs_BR = [], torch.zeros(mask_BR.shape, device=mask_BR.device)
    for start in range(0, len(rollout), batch_size):
        rows = slice(start, start + batch_size)
        part = rollout.rows(rows)
        hidden_BRH = response_hidden(teacher, part)
        logits_NV = response_logits(teacher, hidden_BRH, part.response_mask_BR) / rollout.temperature
        logprobs_N = token_logprobs(logits_NV, part.response_ids_BR[part.response_mask_BR])
        logprobs_BR = logprobs_BR.to(logprobs_N.dtype)
        logprobs_BR[rows][part.response_mask_BR] = logprobs_N
        hidden_parts.append(hidden_BRH)
    return replace(rollout, teacher_hidden_BRH=torch.cat(hidden_parts), teacher_logprobs_BR=logprobs_BR)
