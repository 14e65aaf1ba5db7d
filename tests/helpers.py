"""Prompts for the tiny models of conftest.py."""

import torch

from minillm.data.prompts import pad
from minillm.types import PromptBatch

PROMPTS = [[7, 9, 12], [5, 0, 8, 11, 30, 6, 10], [14, 15, 16, 17, 18]]  # the second has an eos (0) inside


def prompt_batch(rows=PROMPTS, pad_id: int = 0, extra: int = 0) -> PromptBatch:
    """Left padded, with `extra` more columns of padding."""
    ids, mask = pad(rows, pad_id, left=True)
    ids = torch.nn.functional.pad(ids, (extra, 0), value=pad_id)
    mask = torch.nn.functional.pad(mask, (extra, 0), value=False)
    return PromptBatch(ids, mask, torch.arange(len(rows)))
