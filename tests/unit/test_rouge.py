"""Rouge-L against all subsequences tried one by one; exact match after normalisation."""

import random
from itertools import combinations

import pytest

from minillm.metrics.rouge import exact_match, rouge_l


def brute_force(answer, reference):
    """F of the longest common subsequence: 2PR / (P + R) = 2 lcs / (words + words)."""
    subsequences = [
        {kept for size in range(len(words) + 1) for kept in combinations(words, size)}
        for words in (answer.split(), reference.split())
    ]
    longest = max(map(len, subsequences[0] & subsequences[1]))
    return 100 * 2 * longest / (len(answer.split()) + len(reference.split()))


@pytest.mark.parametrize("seed", range(8))
def test_rouge_l_is_that_of_all_subsequences_tried(seed):
    draw = random.Random(seed)
    answer, reference = (" ".join(draw.choices(["a", "bb", "cat", "dog"], k=draw.randint(1, 8))) for _ in range(2))
    assert rouge_l(answer, [reference]) == pytest.approx(brute_force(answer, reference))


@pytest.mark.parametrize(
    ("answer", "reference", "longest", "words"),
    [
        ("a b c d", "a c b d", 3, 8),  # order counts
        ("d c b a", "a b c d", 1, 8),
        ("a x b y c", "a b c", 3, 8),  # gaps do not
        ("a b", "a b c d e f", 2, 8),
        ("A, B! (c)", "a b c", 3, 6),  # neither do case and punctuation
        ("walked", "walking", 1, 2),  # nor endings
        ("one two", "red blue", 0, 4),
        ("", "a b", 0, 2),
    ],
)
def test_rouge_l_by_hand(answer, reference, longest, words):
    assert rouge_l(answer, [reference]) == pytest.approx(100 * 2 * longest / words)


def test_the_best_reference_counts_wherever_it_stands():
    assert rouge_l("a b c d", ["x y", "a b"]) == rouge_l("a b c d", ["a b", "x y"]) == pytest.approx(100 * 4 / 6)


def test_precision_and_recall_weigh_the_same():
    assert rouge_l("a b", ["a b c d"]) == pytest.approx(rouge_l("a b c d", ["a b"])) == pytest.approx(100 * 4 / 6)


def test_without_references_both_are_zero():
    assert rouge_l("a", []) == 0.0 and exact_match("a", []) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Paris.", "paris", 100.0),
        ("It's  a\n\tcat ", "its a cat", 100.0),
        (" - cat - ", "cat", 100.0),
        ("42", "42.0", 0.0),  # the point goes, the digits stay
        ("a cat", "cat", 0.0),  # articles stay
        ("cat dog", "dog cat", 0.0),
        ("café", "cafe", 0.0),
    ],
)
def test_exact_match_normalises_case_punctuation_and_space_only(answer, reference, score):
    assert exact_match(answer, [reference]) == exact_match(reference, [answer]) == score


def test_one_equal_reference_is_enough_and_the_score_is_not_a_count():
    assert exact_match("cat", ["dog", "Cat", "cat!"]) == 100.0
