"""Answers to one prompt together, so that scoring reads the prompt once for all of them.

Axes: B answers, P prompt tokens, R response positions, N counted response tokens, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from minillm.common.types import Rollout
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import Side


@dataclass(frozen=True)
class Branches:
    """Rows of a rollout that have the same prompt; as `MicroBatch` to those who score. Not for gradients."""

    prompt_P: Tensor
    ids_BR: Tensor
    mask_BR: Tensor
    token_N: Tensor  # where in [rows * R] of the rollout each counted token is

    def take(self, values: Tensor) -> Tensor:
        """[rows, R, ...] of the rollout -> [N, ...]."""
        return values.flatten(0, 1)[self.token_N]

    def side(self, model: LanguageModel) -> Side:
        """By a pass over the prompt and one over the answers behind it."""
        n_rows, cache = len(self.ids_BR), DynamicCache()
        with model.caching():
            state_BRH = model.hidden(self.prompt_P.unsqueeze(0), cache)[:, -1:].expand(n_rows, -1, -1)
            if self.ids_BR.shape[1] > 1:  # the last token is nobody's input
                cache.batch_repeat_interleave(n_rows)
                state_BRH = torch.cat([state_BRH, model.hidden(self.ids_BR[:, :-1], cache)], dim=1)
        return Side(state_BRH[self.mask_BR], model.head())


def branches(rollout: Rollout, records: list[int], max_tokens: int) -> list[Branches]:
    """All rows that have an answer; `records` tells which have the same prompt. At most `max_tokens` of answers go
    through a model together where a single row allows it."""
    device, width = rollout.response_ids_BR.device, rollout.response_ids_BR.shape[1]
    places_R = torch.arange(1, width + 1, device=device)
    lengths = (rollout.response_mask_BR * places_R).amax(-1).tolist() if width else [0] * len(rollout)
    groups: list[list[int]] = []
    for row in sorted(filter(lengths.__getitem__, range(len(rollout))), key=lambda row: (records[row], lengths[row])):
        fits = groups and records[groups[-1][0]] == records[row] and (len(groups[-1]) + 1) * lengths[row] <= max_tokens
        if fits:
            groups[-1].append(row)
        else:
            groups.append([row])
    out = []
    for rows in groups:
        rows_B = torch.tensor(rows, device=device)
        mask_BR = rollout.response_mask_BR[rows_B, : lengths[rows[-1]]]
        where_BR = rows_B.unsqueeze(-1) * width + torch.arange(mask_BR.shape[1], device=device)
        prompt_P = rollout.prompt_ids_BP[rows[0]][rollout.prompt_mask_BP[rows[0]]]
        ids_BR = rollout.response_ids_BR[rows_B, : mask_BR.shape[1]]
        out.append(Branches(prompt_P, ids_BR, mask_BR, where_BR[mask_BR]))
    return out
