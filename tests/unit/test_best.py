"""Which validation is the best so far, with figures that are not finite too."""

import math

import pytest

from minillm.train.callbacks.checkpoint import wins

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("new", "old", "higher", "won"),
    [
        (1.0, None, True, True),
        (NAN, None, True, True),  # there has to be one
        (0.2, 0.1, True, True),
        (0.1, 0.2, True, False),
        (0.1, 0.2, False, True),
        (0.2, 0.1, False, False),
        (0.1, 0.1, True, True),
        (0.1, 0.1, False, True),
    ],
)
def test_the_better_or_later_one_wins(new, old, higher, won):
    assert wins(new, old, higher=higher) is won


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_what_is_not_finite_loses_whichever_way_is_better(odd, higher):
    assert wins(0.1, odd, higher=higher)
    assert not wins(odd, 0.1, higher=higher) and not wins(odd, NAN, higher=higher)
