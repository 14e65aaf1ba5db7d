"""Distinct-n against n-grams gathered from text by position."""

import random

import pytest

from minillm.evaluation.metrics import distinct, distinct_n


@pytest.mark.parametrize(
    ("answers", "n", "share"),
    [
        ([[1, 1, 1, 1]], 1, 1 / 4),
        ([[1, 2, 3, 4]], 1, 1.0),
        ([[1, 2, 1, 2, 1]], 2, 2 / 4),
        ([[1, 2, 3], [1, 2, 3]], 3, 1 / 2),
        ([[1, 2], [2, 1]], 2, 1.0),  # order within an n-gram counts
        ([[1, 2], [3, 4]], 2, 1.0),  # none spans two answers: (2, 3) is not among them
        ([[1, 2], [5]], 2, 1.0),  # too short an answer adds nothing
    ],
)
def test_shares_by_hand(answers, n, share):
    assert distinct_n(answers, n) == pytest.approx(share)


def test_the_share_is_pooled_and_not_a_mean_over_answers():
    answers = [[1, 1, 1, 1, 1, 1], [2, 3]]  # 1 of 6 and 2 of 2: the mean would be 7/12
    assert distinct_n(answers, 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_share_is_that_of_joined_strings(n):
    draw = random.Random(n)
    answers = [[draw.randrange(4) for _ in range(draw.randint(0, 9))] for _ in range(6)]
    grams = [
        ",".join(str(tokens[start + offset]) for offset in range(n))
        for tokens in answers
        for start in range(len(tokens))
        if start + n <= len(tokens)
    ]
    assert distinct_n(answers, n) == pytest.approx(len(set(grams)) / len(grams))


@pytest.mark.parametrize("answers", [[], [[]], [[1], [2]]])
def test_where_no_answer_is_long_enough_the_share_is_zero(answers):
    assert distinct_n(answers, 2) == 0.0


def test_answers_may_come_from_a_generator():
    assert distinct_n((tokens for tokens in [(1, 2), (1, 2)]), 2) == pytest.approx(1 / 2)


def test_one_to_four_at_once_even_from_a_generator():
    answers = [[1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 3]]
    assert distinct(answer for answer in answers) == {f"distinct_{n}": distinct_n(answers, n) for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("answers", [[], [[]], [[], []]])
def test_nothing_has_no_diversity(answers):
    assert set(distinct(answers).values()) == {0.0}


def test_a_model_that_only_ends_and_one_that_repeats_itself():
    assert list(distinct([[0]] * 8).values()) == [1 / 8, 0.0, 0.0, 0.0]
    assert distinct([[7] * 100_000])["distinct_4"] == pytest.approx(1 / 99_997)
