"""Rouge-L, exact match and distinct-n against numbers worked out by hand."""

import pytest

from minillm.metrics import distinct_n, exact_match, rouge_l


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # LCS "the cat the mat" of 4 in 5 and 6 words: 2 * (4/5) * (4/6) / (4/5 + 4/6)
    assert rouge_l("the cat near the mat", ["the cat sat on the mat"]) == pytest.approx(100 * 8 / 11)
    assert rouge_l("running dogs", ["the dog runs", "run dog"]) == pytest.approx(100.0)  # stemmed; best reference
    assert rouge_l("anything", []) == 0.0


def test_exact_match_ignores_case_punctuation_and_white_space():
    assert exact_match("  The  Cat! ", ["dog", "the cat."]) == 100.0
    assert exact_match("the cats", ["the cat"]) == 0.0
    assert exact_match("x", []) == 0.0


def test_distinct_n_is_pooled():
    assert distinct_n([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)  
    assert distinct_n([[1], []], 2) == 0.0
