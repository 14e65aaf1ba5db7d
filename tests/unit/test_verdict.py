"""Replies as judges write them, and the ratio against resampling by hand."""

import random
import statistics
import time

import pytest

from minillm.evaluation.judge.verdict import QUESTION, Rating, Ratings, read_scores, score_over_seeds


@pytest.mark.parametrize(
    "reply",
    [
        "8 6",
        "8 6\nAssistant 1 is better by 2 points of 10.",
        "\n  8   6  \n\nAssistant 1: 3, 9 4",
        "8.0 6.0.",
        "8, 6",
        "**8 6**",
        "Scores: 8 6",
        "8/10 6/10",
        "8 and 6",
        "`8` | `6`",
        "[8, 6]",
        "８ ６",
        "Here is what I think.\n\n8 6\nThe first is better.",
        "Assistant 1: 8\nAssistant 2: 6",
        "**Assistant 2:** 6/10, and **Assistant 1:** 8/10, as Assistant 2 is wrong in 3 places.",
        "Score of the Assistant 1: 8\nScore of the Assistant 2: 6",
        "Assistant 1's score is 8. Assistant 2's score is 6.",
        '{"assistant_2": 6, "assistant_1": 8, "why": "it is"}',
        '{"assistant_1": 8, "assistant_2": 6, "total": 14}',
        "<think>3 9 or perhaps\n5 5</think>\n8 6",
        "2 2 at first\n</think>8 6",
    ],
)
def test_two_scores_are_read(reply):
    assert read_scores(reply) == (8, 6)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot rate these.",
        "8",
        "8/10",
        "8 6 7",
        "0 6",
        "11 6",
        "-8 6",
        "8 60",
        "NaN 6",
        "I gave 8 to one and 6 to the other.",  # to which?
        "Scores for Assistant 1 and 2: hard to say, 8 to 6",
        "Assistant 1: 8",
        "Assistant 1: 8\nAssistant 2: 6\nAfter more thought:\nAssistant 2: 7",
        "Some say:\n8 6\nothers:\n6 8",
        '{"answer": 8, "reference": 6}',
        '{"assistant_1": true, "assistant_2": 6}',
        '{"assistant_1": {"score": 8}}',
        '{"assistant_1": 1e99, "assistant_2": NaN}',
        '{"assistant_1": ' + "9" * 5000 + ', "assistant_2": 1}',
        "[" * 100_000,
        "<think>8 6",
        "Assistant 1: 8.5.2 Assistant 2: 6",
    ],
)
def test_what_does_not_say_two_scores_is_none(reply):
    assert read_scores(reply) is None


@pytest.mark.parametrize("piece", [" ", "*", "assistant 1 ", "8", "8 ", "<think>", "{", "assistant 1" + " " * 99, "\n"])
def test_a_megabyte_of_nonsense_is_read_in_time(piece):
    begin = time.perf_counter()
    read_scores(piece * (2**20 // len(piece)) + "x")
    assert time.perf_counter() - begin < 3


def test_a_text_with_braces_stands_in_the_question_as_it_is():
    text = QUESTION.format(prompt="{first} {}", first="{second}", second="%s {0}")
    assert all(each in text for each in ("{first} {}", "{second}", "%s {0}"))


def rated(*scores, outcome="rated"):
    """Ratings of prompts 0, 1, ..."""
    return Ratings(tuple(Rating(str(number), outcome, *pair) for number, pair in enumerate(scores)))


def test_the_ratio_is_of_sums_and_not_a_mean_of_ratios():
    assert rated((2, 1), (1, 9)).ratio == pytest.approx(100 * 3 / 10)  # the mean of 200% and 11% would be 106%
    assert rated().ratio is None


def test_seeds_have_a_mean_and_a_sample_deviation():
    scores = {"10": rated((5, 10)), "20": rated((7, 10)), "30": rated((None, None), outcome="failed")}
    figures = score_over_seeds(scores | {"40": rated((9, 10), (9, 10))})
    assert figures["per_seed"] == {"10": 50, "20": 70, "30": None, "40": 90} and figures["n"] == 2
    assert figures["mean"] == pytest.approx(70)
    assert figures["deviation"] == pytest.approx(statistics.stdev([50, 70, 90]))
    assert score_over_seeds({"10": rated((5, 10))})["deviation"] is None


def test_the_interval_is_that_of_resampled_prompts():
    """Each with its mean pair over the seeds."""
    draw = random.Random(1)
    first, second = ([(draw.randint(1, 10), draw.randint(1, 10)) for _ in range(40)] for _ in range(2))
    pairs = [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in zip(first, second, strict=True)]
    ratios = []
    for _ in range(4000):
        sample = draw.choices(pairs, k=len(pairs))
        ratios.append(100 * sum(a for a, _ in sample) / sum(b for _, b in sample))
    low, *_, high = statistics.quantiles(ratios, n=40)
    found = score_over_seeds({"1": rated(*first), "2": rated(*second)})
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert found == score_over_seeds({"1": rated(*first), "2": rated(*second)})
    assert found["low"] < found["mean"] < found["high"]


def test_intervals_of_little():
    ends = [[figure["low"], figure["high"]] for figure in (
        score_over_seeds({"10": rated()}), score_over_seeds({"10": rated((4, 8))}),
        score_over_seeds({"10": rated((1, 2), (2, 4), (3, 6))}, resamples=1500),  # pairs stay together
    )]  # fmt: skip
    assert ends == [[None, None], pytest.approx([50, 50]), pytest.approx([50, 50])]
