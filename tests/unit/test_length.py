"""Bins by length at their edges."""

import pytest

from minillm.evaluation.metrics import by_length


def test_edges_belong_to_the_lower_bin_and_empty_bins_stay():
    assert by_length("abcdef", [5, 6, 0, 10, 11, 5000]) == {"0-5": ["a", "c"], "6-10": ["b", "d"], "11+": ["e", "f"]}
    assert by_length([], []) == {"0-5": [], "6-10": [], "11+": []}
    assert by_length([1.5, 2.5], [7, 7]) == {"0-5": [], "6-10": [1.5, 2.5], "11+": []}


def test_other_edges():
    assert by_length([1, 2, 3], [0, 1, 9], edges=(0,)) == {"0-0": [1], "1+": [2, 3]}
    assert by_length([1, 2], [0, 9], edges=()) == {"0+": [1, 2]}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="zip"):
        by_length([1, 2], [3])
