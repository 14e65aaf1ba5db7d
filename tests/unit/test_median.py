"""The median rule, against its definition over a table of curves."""

import random
from statistics import median

import pytest

from minillm.common.errors import ConfigError
from minillm.train.callbacks.median import hopeless
from tests.conf.test_compose import settings


def test_it_is_the_rule_of_vizier():
    """Table[run][step]: best so far against the median of the means of columns up to the step."""
    draw, stopped = random.Random(0), 0
    for higher in (True, False):
        for _ in range(200):
            table = [[draw.gauss(0, 1) for _ in range(6)] for _ in range(5)]
            step = draw.randrange(6)
            lengths = [draw.randrange(1, 7) for _ in range(4)]
            others = [list(enumerate(row[:length])) for row, length in zip(table[1:], lengths, strict=True)]
            there = [row for row, length in zip(table[1:], lengths, strict=True) if length > step]
            found = hopeless(list(enumerate(table[0])), others, step, higher=higher, min_siblings=2)
            if len(there) < 2:
                assert found is None
                continue
            middle = median(sum(row[: step + 1]) / (step + 1) for row in there)
            best = (max if higher else min)(table[0][: step + 1])
            assert bool(found) == (best < middle if higher else best > middle)
            stopped += bool(found)
    assert 20 < stopped < 300


def test_equal_to_the_median_goes_on_and_few_siblings_stop_nothing():
    curve = [(0, 2.0), (4, 1.0)]
    worse = [(0, 2.0), (4, 1.9)]
    assert hopeless([(0, 1.5), (4, 1.5)], [curve] * 3, 4, higher=False, min_siblings=3) is None
    assert "1.9, is worse than 1.5" in hopeless(worse, [curve] * 3, 4, higher=False, min_siblings=3)
    assert hopeless(worse, [curve] * 2, 4, higher=False, min_siblings=3) is None
    assert hopeless(worse, [curve] * 3, 5, higher=False, min_siblings=3) is None  # none has come as far
    assert hopeless(worse, [curve, [], [(8, 1.0)]], 4, higher=False, min_siblings=1)


def test_it_needs_validations_on_the_way():
    with pytest.raises(ConfigError, match="set callbacks.validation.every"):
        settings("callbacks=median", "callbacks.validation.every=null")
