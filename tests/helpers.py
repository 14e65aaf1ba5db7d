"""Prompts for the tiny models of conftest.py, and other roads to what the package computes."""

import threading

import torch

from minillm.common.types import PromptBatch
from minillm.data.prompts import pad
from minillm.models import Head
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss

PROMPTS = [[7, 9, 12], [5, 0, 8, 11, 30, 6, 10], [14, 15, 16, 17, 18]]  # the second has an eos (0) inside
# Every test of a loss runs on both: all tokens at once by autograd, and chunks of a few tokens in closed form.
ROADS = [LinearLoss(chunk_mb=None), LinearLoss(chunk_mb=5e-4)]
ROAD_NAMES = ["plain", "chunked"]


def prompt_batch(rows=PROMPTS, pad_id: int = 0, extra: int = 0) -> PromptBatch:
    """Left padded, with `extra` more columns of padding."""
    ids, mask = pad(rows, pad_id, left=True)
    ids = torch.nn.functional.pad(ids, (extra, 0), value=pad_id)
    mask = torch.nn.functional.pad(mask, (extra, 0), value=False)
    return PromptBatch(ids, mask, torch.arange(len(rows)))


def logits_side(logits_NV) -> Side:
    """Given logits as a side: the head is the identity."""
    return Side(logits_NV, Head(torch.eye(logits_NV.shape[-1], dtype=logits_NV.dtype)))


def own_logits(network, rollout) -> torch.Tensor:
    """[N, V] at the counted positions, by the network's own forward pass over left-padded rows."""
    mask = torch.cat([rollout.prompt_mask_BP, rollout.response_mask_BR], dim=1)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    logits = network(input_ids=rollout.ids_BS, attention_mask=mask.long(), position_ids=positions).logits
    return logits[:, rollout.prompt_ids_BP.shape[1] - 1 : -1][rollout.response_mask_BR]


def on_threads(size, work):
    """What `work(rank)` gives, or the error that it raises, for each rank in a thread of its own."""
    results = [None] * size

    def one(rank):
        try:
            results[rank] = work(rank)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
