"""Deviation and bootstrap against all resamples listed, and against the known distribution of a mean."""

import itertools
import math
from statistics import stdev

import numpy as np
import pytest

from minillm.common.errors import DataError
from minillm.evaluation.metrics import bootstrap, over_seeds, paired_change


@pytest.mark.parametrize(("n", "level"), [(3, 0.8), (4, 0.9), (5, 0.95)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_interval_is_that_of_all_resamples_listed(n, level, weighted):
    values = [1.0, 2.5, 7.0, 7.5, 20.0][:n]
    weights = [1.0, 3.0, 2.0, 5.0, 4.0][:n] if weighted else [1.0] * n
    every = np.sort(
        [
            sum(values[row] for row in rows) / sum(weights[row] for row in rows)
            for rows in itertools.product(range(n), repeat=n)
        ]
    )
    found = over_seeds([values], [weights], resamples=40_000, level=level)
    for end, share in ((found.low, (1 - level) / 2), (found.high, (1 + level) / 2)):
        # Between the ends of a share that may be off by five deviations of the draw.
        slack = 5 * math.sqrt(share * (1 - share) / 40_000)
        low, high = np.quantile(every, [max(0, share - slack), min(1, share + slack)], method="inverted_cdf")
        assert low - 1e-9 <= end <= high + 1e-9


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(3).normal(5, 2, size=400)
    found = over_seeds(values[None])
    half = 1.959964 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04 * half)


def test_it_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        found = over_seeds(draw.exponential(size=(1, 80)), resamples=400, seed=seed)
        inside += found.low <= 1 <= found.high
    assert 0.88 <= inside / 300 <= 0.97  # a skewed mean of 80: a little under 95%, deviation 0.013


def test_seeds_give_the_deviation_and_prompts_the_interval():
    values = np.array([[1.0, 5.0, 9.0], [3.0, 7.0, 11.0]])  # two seeds that differ by 2 everywhere
    found = over_seeds(values)
    assert (found.mean, found.n) == (6.0, 3)
    assert found.deviation == pytest.approx(stdev([5.0, 7.0]))
    alone = over_seeds(values.mean(0, keepdims=True))
    assert (found.low, found.high) == (alone.low, alone.high) and alone.deviation is None


def test_a_ratio_is_one_of_sums_over_all_seeds_and_prompts():
    nats, tokens = [[2.0, 30.0], [4.0, 10.0]], [[1, 10], [2, 20]]
    found = over_seeds(nats, tokens)
    assert found.mean == pytest.approx(46 / 33)
    assert found.deviation == pytest.approx(stdev([32 / 11, 14 / 22]))
    assert found.low == pytest.approx(40 / 30) and found.high == pytest.approx(6 / 3)  # one prompt drawn twice


@pytest.mark.slow
def test_equal_arguments_give_equal_numbers_and_blocks_are_not_repeated():
    values = np.random.default_rng(1).normal(size=(2, 3000))  # several blocks of resamples
    assert over_seeds(values) == over_seeds(values) != over_seeds(values, seed=1)
    seen = []
    bootstrap(3000, lambda counts: seen.append(counts) or counts.sum(1), resamples=3000)
    counts = np.concatenate(seen)
    assert len(seen) > 1 and counts.shape == (3000, 3000) and (counts.sum(1) == 3000).all()
    assert len(np.unique(counts[:, :50], axis=0)) == 3000


def test_a_statistic_may_have_several_figures_and_resamples_without_a_value():
    def first_two(counts):
        return np.stack([counts[:, 0], np.where(counts[:, 1] == 0, np.nan, 1.0)], axis=1)

    low, high = bootstrap(2, first_two)
    assert low.tolist() == [0.0, 1.0] and high.tolist() == [2.0, 1.0]


def test_few_prompts_have_defined_figures():
    assert over_seeds([[], []]).n == 0
    assert set(vars(over_seeds([[], []])).values()) == {None, 0}
    one = over_seeds([[4.0], [6.0]])
    assert (one.mean, one.low, one.high, one.n) == (5.0, 5.0, 5.0, 1)


@pytest.mark.parametrize(
    ("values", "weights", "text"),
    [
        ([], None, "at least one seed"),
        ([1.0, 2.0], None, r"values \(2,\): wanted finite numbers \[seeds, prompts\]"),
        ([[1.0, 2.0], [1.0]], None, "every seed must have a number for every prompt"),
        ([[1.0, math.nan]], None, r"values \(1, 2\): wanted finite numbers"),
        ([[1.0, 2.0]], [[1.0, 0.0]], "weights .* wanted numbers above 0"),
        ([[1.0, 2.0]], [[1.0]], r"weights \(1, 1\): .* values \(1, 2\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(values, weights, text):
    with pytest.raises(DataError, match=text):
        over_seeds(values, weights)


def test_nothing_can_be_drawn_from_nothing():
    with pytest.raises(DataError, match="0 prompts"):
        bootstrap(0, lambda counts: counts.sum(1))


def test_the_interval_of_a_change_draws_the_same_prompts_before_and_after():
    before, after = [(2.0, 1), (9.0, 3), (4.0, 2)], [(1.0, 2), (9.0, 2), (8.0, 5)]
    every = []
    for rows in itertools.product(range(3), repeat=3):
        sums = [[sum(pairs[row][place] for row in rows) for place in (0, 1)] for pairs in (before, after)]
        every.append(sums[1][0] / sums[1][1] - sums[0][0] / sums[0][1])
    change, low, high = paired_change(before, after)
    assert change == pytest.approx(18 / 9 - 15 / 6)
    assert (low, high) == pytest.approx((min(every), max(every)))  # 1/27 of all are either
