"""Shares and their sums, on one rank and, in threads of one process, on three."""

from itertools import chain

import pytest
import torch

from minillm.parallel import ALONE, Group


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_a_partition_in_turn(size):
    items = list("abcdefg")
    shares = [Group(rank, size).share(items) for rank in range(size)]
    assert sorted(chain(*shares)) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == items[rank::size] for rank, share in enumerate(shares))


def test_alone_everything_is_what_it_was():
    rows = torch.arange(6).view(3, 2)
    assert ALONE.join([1, 2]) == [1, 2] and ALONE.join_rows(rows) is rows and ALONE.largest(4) == 4
    assert ALONE.total({"a": torch.tensor(2.5)}) == {"a": 2.5}
    ALONE.add_up([rows])
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_joining_undoes_sharing(ranks):
    items = list(range(8))
    assert ranks(lambda group: group.join(group.share(items))) == [items] * 3


def test_joined_rows_are_in_their_order_whatever_their_type(ranks):
    for rows in (torch.arange(12.0).view(6, 2), torch.arange(6) % 2 == 0):
        for joined in ranks(lambda group, rows=rows: group.join_rows(rows[group.share(range(6))])):
            assert joined.dtype == rows.dtype and torch.equal(joined, rows)


def test_figures_and_tensors_are_summed(ranks):
    totals = ranks(
        lambda group: group.total({"a": group.rank + 1.0} | ({"only_there": 5.0} if group.rank == 2 else {}))
    )
    assert totals == [{"a": 6.0, "only_there": 5.0}] * 3

    def add(group):
        tensors = [torch.full((2, 3), group.rank + 1.0), torch.ones(4, dtype=torch.float64), torch.ones(1)]
        group.add_up(tensors)
        return [each.unique().tolist() for each in tensors]

    assert ranks(add) == [[[6.0], [3.0], [3.0]]] * 3
    assert ranks(lambda group: group.largest(group.rank)) == [2] * 3
