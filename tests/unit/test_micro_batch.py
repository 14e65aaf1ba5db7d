"""Micro-batches for several devices: every row once, as many for each device as can be, none larger than allowed."""

from dataclasses import replace

import pytest
import torch

from minillm.common.types import Rollout
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import rollout_divergence
from minillm.rollout.micro_batch import micro_batches
from tests.tiny import make_model


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


def test_a_mask_with_holes_takes_the_tokens_that_it_counts():
    """What does not count is still there for what comes after it."""
    torch.manual_seed(0)
    model, teacher = make_model(seed=1), LanguageModel(make_model(seed=2)).frozen()
    whole = Rollout(*(torch.randint(1, 31, (3, n)) if kind else torch.ones(3, n, dtype=torch.bool)
                      for n in (4, 6) for kind in (True, False)))  # fmt: skip
    holes = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]]).bool()
    holed = replace(whole, response_mask_BR=holes)
    student = LanguageModel(model)
    right, ours = (
        rollout_divergence(student, teacher, each, LinearLoss(), max_tokens=20).reverse_kl_BR for each in (whole, holed)
    )
    torch.testing.assert_close(ours, right * holes)
    alone = rollout_divergence(student, teacher, holed.rows(slice(0, 1)), LinearLoss(), max_tokens=20)
    torch.testing.assert_close(alone.reverse_kl_BR[0], (right * holes)[0])
    assert holed.trimmed().response_ids_BR.shape[1] == 6
    assert holed.rows(slice(2, 3)).trimmed().response_ids_BR.shape[1] == 3
