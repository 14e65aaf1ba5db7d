"""The paper's values stand beside the same network and method only."""

import json

import pytest

from minillm.evaluation.report import Model
from minillm.evaluation.report.tables import ROWS, row_of, set_of


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("data/eval_dolly_test.jsonl", "Dolly"),
        ("eval_self_instruct.jsonl", "SelfInst"),
        ("eval_vicuna.jsonl", "Vicuna"),
        ("eval_sinst_11plus.jsonl", "S-NI"),
        ("eval_uinst_11plus_small.jsonl", "UnNI"),
        ("test_lists.jsonl", None),
        ("clips.jsonl", None),
    ],
)
def test_sets_of_the_paper_by_file_name(file, expected):
    assert set_of(file) == expected


@pytest.mark.parametrize(
    ("kind", "millions", "label", "expected"),
    [
        ("gpt2", 124.44, "gpt2_120m_minillm/student", 24.6),
        ("gpt2", 124.44, "gpt2_120m_seqkd/student", 22.7),
        ("gpt2", 124.44, "mine/student", None),  # of no known method
        ("gpt2", 124.44, "gpt2_120m_minillm_nopt/student", None),  # the paper has no row for an ablation
        ("gpt2", 124.44, "minillm_no_mixing/student", None),
        ("gpt2", 124.44, "minillm-lora/student", None),
        ("llama", 124.44, "gpt2_120m_minillm/student", None),
        ("gpt2", 130.0, "gpt2_120m_minillm/student", None),
    ],
)
def test_the_papers_row_stands_beside_the_same_network_and_method_only(
    tmp_path, monkeypatch, kind, millions, label, expected
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    row = row_of(Model("~", label, "student", int(millions * 1e6), 1))
    assert (row and row.values["Dolly"]) == expected
    (tmp_path / "config.json").write_text("{broken")
    assert row_of(Model(str(tmp_path), label, "student", int(millions * 1e6), 1)) is None


def test_published_values_are_those_of_the_paper():
    averages = {row.name: sum(row.values.values()) / 5 for row in ROWS}
    assert len(averages) == 13
    assert averages["GPT-2 120M, MiniLLM"] == pytest.approx(21.32)
    assert averages["LLaMA 13B, Teacher"] == pytest.approx(29.36)
