"""Means by position against plain loops."""

import random

import pytest
import torch

from minillm.common.errors import NonFiniteError
from minillm.evaluation.metrics import pooled, position_means


def lengths_mask(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def by_loops(values, lengths, groups):
    means, alive = [], []
    for t in range(max(lengths)):
        of_group = {}
        for row, length in enumerate(lengths):
            if t < length:
                of_group.setdefault(groups[row], []).append(values[row][t])
        means.append(sum(sum(each) / len(each) for each in of_group.values()) / len(of_group))
        alive.append(sum(map(len, of_group.values())))
    return means, alive


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grouped", [False, True])
def test_means_are_taken_over_answers_alive_first_within_a_group(seed, grouped):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 7) for _ in range(12)]
    groups = [draw.choice([3, -1, 8, 40]) if grouped else row for row in range(12)]
    values = torch.tensor([[draw.gauss(0, 1) for _ in range(9)] for _ in range(12)], dtype=torch.float64)
    values[~lengths_mask(lengths, 9)] = float("inf")  # what is outside the mask is not read
    got = position_means(values, lengths_mask(lengths, 9), torch.tensor(groups) if grouped else None)
    means, alive = by_loops(values.tolist(), lengths, groups)
    assert got.mean == pytest.approx(means, abs=1e-12) and got.alive == tuple(alive)


def test_too_few_alive_have_no_mean_but_are_counted():
    values, mask = torch.ones(3, 3), lengths_mask([3, 2, 1], 3)
    got = position_means(values, mask, min_alive=2)
    assert got.mean == (1.0, 1.0, None) and got.alive == (3, 2, 1)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0), (3, 4)])
def test_without_a_token_there_is_no_position(shape):
    got = position_means(torch.ones(shape), torch.zeros(shape, dtype=torch.bool))
    assert got.mean == got.alive == ()


def test_half_types_are_summed_in_float64():
    values = torch.full((3000, 1), 0.1, dtype=torch.bfloat16)
    assert position_means(values, values > 0).mean[0] == pytest.approx(values[0, 0].item(), rel=1e-12)


def test_what_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match="answer 1, position 3: nan"):
        position_means(torch.tensor([[1.0, 1, 1], [1, 1, torch.nan]]), torch.ones(2, 3, dtype=torch.bool))


def test_means_of_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    lengths = [3, 7, 1, 5, 5]
    values, mask = torch.rand(5, 9, dtype=torch.float64), lengths_mask(lengths, 9)
    whole = position_means(values, mask)
    parts = pooled([position_means(values[rows], mask[rows]) for rows in ([0], [1, 2, 3], [4])])
    assert parts.mean == pytest.approx(whole.mean, abs=1e-12) and parts.alive == whole.alive
    assert pooled([]).mean == ()
