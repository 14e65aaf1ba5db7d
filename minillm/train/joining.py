"""All-gather of rollouts: from each rank's rows to the whole rollout on every rank."""

from __future__ import annotations

from dataclasses import fields, replace

from torch import Tensor
from torch.nn.functional import pad

from minillm.common.types import PromptBatch, Rollout
from minillm.parallel import Group


def joined(mine: Rollout, prompts: PromptBatch, group: Group) -> Rollout:
    """The whole rollout; `mine` answers this rank's share of the `prompts`, equally many on each rank."""
    if group.size == 1:
        return mine
    longest = group.largest(mine.response_ids_BR.shape[1])
    whole: dict[str, Tensor] = {}
    for field in fields(mine):
        value = getattr(mine, field.name)
        if isinstance(value, Tensor) and not field.name.endswith("_BP"):
            short = longest - value.shape[1]
            whole[field.name] = group.join_rows(pad(value, (0, 0) * (value.dim() - 2) + (0, short)))
    # Padding of ids is never looked at: the mask, made once, says what counts.
    return replace(mine, prompt_ids_BP=prompts.ids_BP, prompt_mask_BP=prompts.mask_BP, **whole).trimmed()
