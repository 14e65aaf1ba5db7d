"""Micro-batches for several devices: every row once, as many for each device as can be, none larger than allowed."""

import pytest
import torch

from minillm.scoring.micro_batch import micro_batches
from minillm.types import Rollout


def rollout(lengths, prompt=3):
    ids = torch.ones(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    prompts = torch.ones(len(lengths), prompt, dtype=torch.long)
    return Rollout(prompts, prompts.bool(), ids, mask)


@pytest.mark.parametrize("shares", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("max_tokens", [10, 40, 1000])
def test_every_row_once_and_none_larger_than_allowed(shares, max_tokens):
    lengths = torch.randint(1, 30, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    micros = micro_batches(rollout(lengths), max_tokens, shares=shares)
    assert sorted(row for micro in micros for row in micro.rows_B.tolist()) == list(range(24))
    assert all(micro.ids_BS.numel() <= max_tokens or len(micro.ids_BS) == 1 for micro in micros)
    assert sum(len(micro) for micro in micros) == sum(lengths)


def test_no_device_waits_where_rows_allow():
    """16 rows of one length on 4 devices: as large as allowed they would be 3 micro-batches, one device without."""
    micros = micro_batches(rollout([5] * 16), 49, shares=4)
    assert [len(micro.rows_B) for micro in micros] == [4] * 4
    assert [len(micro.rows_B) for micro in micro_batches(rollout([5] * 16), 49)] == [7, 7, 2]


def test_the_limit_on_rows_holds_too():
    micros = micro_batches(rollout([5] * 16), 1000, 3, shares=2)
    assert max(len(micro.rows_B) for micro in micros) == 3 and len(micros) % 2 == 0
