"""Rouge-L against all subsequences tried one by one and against rouge-score; exact match after normalisation."""

import random
from itertools import combinations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from minillm.evaluation.metrics import exact_match, rouge_l


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


TEXT = """On a day in May the foxes' walking tour began; 12 of them walked, others ran. "Running, why?" they asked - and
sang café songs: the river, the trees, a boat. Nobody knew what they were singing, but everyone listened.""".split()


@pytest.mark.parametrize("seed", range(20))
def test_rouge_l_is_that_of_rouge_score(seed):
    draw = random.Random(seed)
    answer, *references = (" ".join(draw.choices(TEXT, k=draw.randint(0, 150))) for _ in range(3))
    library = RougeScorer(["rougeL"], use_stemmer=True)
    expected = max(library.score(reference, answer)["rougeL"].fmeasure for reference in references)
    assert rouge_l(answer, references) == pytest.approx(100 * expected, abs=1e-9)


def test_answers_of_100_kb_are_measured_too():
    words = " ".join(random.Random(0).choices(TEXT, k=20_000))  # the whole table of the two would take gigabytes
    assert len(words) > 100_000
    assert rouge_l(words, [words]) == exact_match(words, [words]) == 100.0
    assert 0 < rouge_l(words, ["the foxes walked"]) < 1
    assert rouge_l("x" * 100_000, ["the foxes walked"]) == 0.0


def test_other_scripts_have_no_words_for_rouge_but_match_exactly():
    assert rouge_l("猫が好き", ["猫が好き"]) == 0.0 and exact_match("猫が好き", ["猫が好き"]) == 100.0
    assert exact_match("猫が好き。", ["猫が好き"]) == 0.0  # only ASCII punctuation goes
    assert rouge_l("猫 7", ["7"]) == 100.0
    assert exact_match("Привет, МИР", ["привет мир"]) == 100.0


def test_empty_answers_are_defined():
    assert rouge_l("", [""]) == rouge_l("", ["a"]) == rouge_l("a", [""]) == rouge_l("?!", ["..."]) == 0.0
    assert all(isinstance(rouge_l(text, ["a"]), float) for text in ("", "a", "b"))
    assert exact_match("", [""]) == exact_match("?!", [""]) == 100.0
