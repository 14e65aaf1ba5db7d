"""Lengths by hand, and bins at their edges."""

import pytest

from minillm.errors import DataError
from minillm.metrics import LengthFigures, by_length, length_figures, reference_length


def test_figures_by_hand():
    found = length_figures([1, 1, 4, 6], [False, True, False, True])
    assert found == LengthFigures(n=4, mean=3, median=2.5, shortest=1, longest=6, truncated=0.5, empty=0.25)


def test_models_that_only_emit_the_end_token_and_models_that_never_stop():
    assert length_figures([1, 1], [False, False]).empty == 1.0
    never = length_figures([50, 50], [True, True])
    assert (never.truncated, never.empty, never.mean) == (1.0, 0.0, 50)


def test_without_answers_only_their_number_is_known():
    assert set(vars(length_figures([], [])).values()) == {0, None}


def test_edges_belong_to_the_lower_bin_and_empty_bins_stay():
    assert by_length("abcdef", [5, 6, 0, 10, 11, 5000]) == {"0-5": ["a", "c"], "6-10": ["b", "d"], "11+": ["e", "f"]}
    assert by_length([], []) == {"0-5": [], "6-10": [], "11+": []}
    assert by_length([1.5, 2.5], [7, 7]) == {"0-5": [], "6-10": [1.5, 2.5], "11+": []}


def test_other_edges():
    assert by_length([1, 2, 3], [0, 1, 9], edges=(0,)) == {"0-0": [1], "1+": [2, 3]}
    assert by_length([1, 2], [0, 9], edges=()) == {"0+": [1, 2]}


def test_the_shortest_reference_counts():
    assert reference_length(["a b c", "d e", "f g h i"], str.split) == 2
    assert reference_length([""], str.split) == 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: length_figures([1], []), "1 lengths and 0 marks"),
        (lambda: length_figures([0], [False]), "a length of 0 tokens"),
        (lambda: reference_length([], str.split), "without references"),
        (lambda: by_length([1, 2], [3]), "2 figures and 1 lengths"),
        (lambda: by_length([1], [-1]), "a length of -1"),
        (lambda: by_length([1], [1], edges=(5, 5)), "ascending"),
        (lambda: by_length([1], [1], edges=(10, 5)), "ascending"),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(DataError, match=text):
        call()
