"""What becomes of finished answers: figures against plain sums, ids, edge cases."""

from statistics import mean, stdev

import pytest

from minillm.evaluation.metrics import Figure, exact_match, rouge_l
from minillm.evaluation.suite.results import answer_figures, length_bins
from minillm.evaluation.suite.work import pieces
from tests.tiny import make_tokenizer


def row(id="a", tokens=(5, 6, 0), answer="the cat", references=("the big cat",), truncated=False, kl=None, length=3):
    return {
        "id": id, "answer": answer, "tokens": tokens, "truncated": truncated, "reference_length": length,
        "rouge_l": rouge_l(answer, references) if references else None,
        "exact_match": exact_match(answer, references) if references else None,
        "reverse_kl": kl, "forward_kl": kl,
    }  # fmt: skip


def test_figures_are_plain_sums_over_the_answers():
    rows = {
        10: [row(tokens=(5, 6, 0), kl=3.0), row(tokens=(7,), answer="dog", truncated=True, kl=1.0)],
        20: [row(tokens=(0,), answer="", kl=0.5), row(tokens=(5, 5, 5, 5, 5, 0), answer="the big cat", kl=6.0)],
    }
    figures = answer_figures(rows)
    assert figures["rouge_l"]["per_seed"] == pytest.approx({"10": (80 + 0) / 2, "20": (0 + 100) / 2})
    assert figures["exact_match"]["mean"] == 25 and figures["exact_match"]["n"] == 2
    # Nats over tokens, pooled.
    assert figures["reverse_kl"]["per_seed"] == pytest.approx({"10": 4 / 4, "20": 6.5 / 7})
    assert figures["reverse_kl"]["mean"] == pytest.approx(10.5 / 11)
    assert figures["length"]["per_seed"] == {"10": 2, "20": 3.5}
    assert figures["length"]["deviation"] == pytest.approx(stdev([2, 3.5]))
    assert figures["truncated"]["per_seed"] == {"10": 0.5, "20": 0} and figures["empty"]["per_seed"]["20"] == 0.5
    assert figures["distinct_1"]["per_seed"] == pytest.approx({"10": 1.0, "20": 2 / 7})
    assert figures["distinct_1"]["low"] is None and figures["distinct_1"]["mean"] == pytest.approx(mean([1, 2 / 7]))
    # Two prompts: a resample is one of them twice, or both.
    assert figures["rouge_l"]["low"] == pytest.approx(40) and figures["rouge_l"]["high"] == pytest.approx(50)


def test_what_does_not_apply_is_left_out_and_greedy_has_a_name():
    figures = answer_figures({None: [row(references=(), length=None)]})
    assert not {"rouge_l", "exact_match", "reverse_kl", "forward_kl"} & figures.keys()
    assert figures["length"]["per_seed"] == {"greedy": 3} and figures["length"]["deviation"] is None
    assert length_bins({None: [row(references=(), length=None)]}) == {}


def test_a_figure_of_ones_own_is_left_out_where_one_answer_has_none_and_may_be_named_as_a_field():
    own = Figure("seed", "Words", of=lambda answer, _: None if answer.truncated else len(answer.answer.split()))
    rows = {1: [row() | {"seed": 1}], 2: [row(truncated=True) | {"seed": 2}]}
    assert answer_figures({1: rows[1]}, figures=[own])["seed"]["mean"] == 2
    for order in ((1, 2), (2, 1)):
        assert answer_figures({seed: rows[seed] for seed in order}, figures=[own]) == {}


def test_answers_are_grouped_by_the_length_of_their_reference():
    rows = {1: [row(length=2), row(answer="dog", length=5), row(answer="the big cat", length=11)]}
    bins = length_bins(rows)
    assert {name: each["rouge_l"]["n"] for name, each in bins.items()} == {"0-5": 2, "6-10": 0, "11+": 1}
    assert bins["0-5"]["rouge_l"]["mean"] == pytest.approx(40) and bins["11+"]["exact_match"]["mean"] == 100
    nothing = {"mean": None, "deviation": None, "low": None, "high": None, "n": 0, "per_seed": {}}
    assert bins["6-10"] == {"rouge_l": nothing, "exact_match": nothing}


def test_only_ends_long_texts_other_scripts():
    ends = answer_figures({seed: [row(tokens=(0,), answer="") for _ in range(4)] for seed in (1, 2)})
    assert ends["empty"]["mean"] == 1 and ends["length"]["mean"] == 1 and ends["rouge_l"]["mean"] == 0
    assert ends["distinct_1"]["mean"] == 0.25 and ends["distinct_2"]["mean"] == 0
    endless = answer_figures({1: [row(tokens=(5,) * 9, truncated=True)]})
    assert endless["truncated"]["mean"] == 1 and endless["empty"]["mean"] == 0 and endless["length"]["mean"] == 9
    cut_at_one = answer_figures({1: [row(tokens=(5,), truncated=True)]})
    assert cut_at_one["empty"]["mean"] == 0
    cats = answer_figures({1: [row(answer="猫。", references=("猫。",))]})
    assert (cats["rouge_l"]["mean"], cats["exact_match"]["mean"]) == (0, 100)
    text = "the cat " * 12_500
    long = answer_figures({1: [row(answer=text, references=(text,), tokens=tuple(range(25_000)))]})
    assert long["rouge_l"]["mean"] == 100 and long["distinct_4"]["mean"] == 1


def test_no_prompt_at_all():
    figures = answer_figures({1: [], 2: []})
    assert figures["length"]["n"] == 0 and figures["length"]["mean"] is None and "reverse_kl" not in figures


def test_pieces_of_an_answer_make_its_text():
    tokenizer = make_tokenizer()
    tokens = tokenizer("the cat is blue")["input_ids"]
    assert pieces(tokenizer, tokens) == ["the", " cat", " is", " blue"]

    class Bytes:
        """A token a byte, as byte-level tokenizers fall back to."""

        def decode(self, tokens, **_):
            return bytes(tokens).decode("utf-8", errors="replace")

    text = "a猫é!"
    found = pieces(Bytes(), list(text.encode()))
    assert found == ["a", "", "", "猫", "", "é", "!"] and pieces(Bytes(), list("猫".encode())[:2])[-1] == "\ufffd"
