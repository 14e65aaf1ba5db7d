"""Rows as a function of the position: whole passes, each in an order of its own, whatever the batch size."""

from collections import Counter

import pytest

from minillm.data.order import rows_at


@pytest.mark.parametrize("n_rows", [1, 2, 7, 50])
def test_each_of_many_passes_has_every_row_exactly_once(n_rows):
    stream = rows_at(5, 0, 4 * n_rows, n_rows)
    for epoch in range(4):
        assert Counter(stream[epoch * n_rows : (epoch + 1) * n_rows]) == Counter(range(n_rows))


def test_orders_differ_by_epoch_and_by_seed():
    orders = {tuple(rows_at(seed, epoch * 30, 30, 30)) for seed in (0, 1, 2) for epoch in range(5)}
    assert len(orders) == 15
    assert tuple(range(30)) not in orders


@pytest.mark.parametrize("size", [1, 3, 8, 11, 40])
def test_batches_of_any_size_cut_one_and_the_same_stream(size):
    whole = rows_at(9, 0, 40, 11)
    pieces = [rows_at(9, start, min(size, 40 - start), 11) for start in range(0, 40, size)]
    assert [row for piece in pieces for row in piece] == whole


def test_a_batch_larger_than_the_data_goes_through_several_passes():
    assert Counter(rows_at(0, 0, 9, 3)) == {0: 3, 1: 3, 2: 3}


def test_a_resumed_run_reads_the_same_after_other_passes_were_read():
    first = rows_at(2, 6, 10, 13)
    for epoch in range(20):  # more passes than are remembered
        rows_at(3, epoch * 13, 13, 13)
    assert rows_at(2, 6, 10, 13) == first


def test_no_rows_asked_for_none_given():
    assert rows_at(0, 17, 0, 5) == []
