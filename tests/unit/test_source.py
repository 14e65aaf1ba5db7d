"""What a report reads: a broken file is named with what was wanted, and the report goes on with the others."""

import json
import os
import re

import pytest

from minillm.common.errors import DataError
from minillm.evaluation.report import read_folder, write_report
from tests.evaluation_files import FILES, START, TEACHER, write_evaluation
from tests.unit.test_report import training_run


def broken(folder, name, change):
    file = folder / name
    text = change(file.read_text())
    file.unlink() if text is None else file.write_text(text)


def edit(*path, value):
    def change(text):
        metrics = node = json.loads(text)
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        return json.dumps(metrics)

    return change


PLAIN = ("answers", "plain", FILES[0])
LOW = (*PLAIN, TEACHER, "figures", "rouge_l", "low")
KL = ("position", FILES[0], START, "reverse_kl")
METRICS = [
    (lambda text: None, "missing; wanted what evaluate.py writes"),
    (lambda text: text[:-9], r"not JSON \("),
    (lambda text: "[" * 100_000, r"not JSON \("),
    (lambda text: "[1]", "the whole: "),
    (edit("models", value=None), "models: "),
    (edit("models", value={}), "models: "),
    (edit(*PLAIN, TEACHER, value={}), rf"answers\.plain\.{FILES[0]}\.{TEACHER}\.figures: "),
    (edit(*LOW, value="x"), r"rouge_l\.low.*: .*got 'x'"),
    (edit(*LOW, value="nan"), r"rouge_l\.low.*: .*got 'nan'"),
    (edit(*KL, "alive", value=1), r"reverse_kl\.alive.*: .*got 1"),
    (edit("calibration", "sst2", START, "bins", value=[{}]), r"bins\.0\.low: "),
    (edit("judge", value={"plain": {FILES[0]: {START: {"items": "x"}}}}), r"judge.*items.*: "),
    (edit("exposure", FILES[0], START, "first_token", value="x"), "first_token.*: "),
]
LINES = [
    ("answers.jsonl", lambda text: None, r"answers\.jsonl: cannot be read \(no such file\)"),
    ("answers.jsonl", lambda text: text[:-9], r"answers\.jsonl, line 180: not JSON .*left out: 1$"),
    ("answers.jsonl", lambda text: text + '{"model": "x"}\n' * 2, r"line 181: file: .*left out: 2$"),
    ("answers.jsonl", lambda text: text.replace(START, "other", 1), "line 61: model 'other' is not in metrics"),
    ("answers.jsonl", lambda text: text.replace('"references": [', '"references": [1, ', 1), r"references\.0: .*got 1"),
]


@pytest.fixture
def folder(tmp_path):
    return write_evaluation(tmp_path / "paper", prompts=5)


@pytest.mark.parametrize(("change", "message"), METRICS)
def test_figures_that_cannot_be_used_are_one_message(folder, change, message):
    (folder / "config.yaml").unlink(missing_ok=True)
    broken(folder, "metrics.json", change)
    with pytest.raises(DataError, match=rf"metrics\.json: (?s:.*){message}"):
        read_folder(folder)


@pytest.mark.parametrize(("name", "change", "message"), LINES)
def test_a_broken_line_is_named_and_the_others_are_read(folder, name, change, message):
    rows = len(read_folder(folder).answers)
    broken(folder, name, change)
    found = read_folder(folder)
    (note,) = found.notes
    assert pytest.approx(len(found.answers), abs=1) == (rows if (folder / "answers.jsonl").exists() else 0)
    assert re.search(message, note)


def test_numbers_that_are_none_and_lists_of_several_lengths_are_shown_as_far_as_they_go(folder):
    """Infinity, 10^400 and what no figure of ours can be count as no value."""
    for path, value in ((LOW, 10**400), ((*LOW[:-1], "mean"), 1e300), (("exposure", FILES[0], START, "low"), [1])):
        broken(folder, "metrics.json", edit(*path, value=value))
    broken(folder, "answers.jsonl", lambda text: text.replace('"n_tokens": ', '"n_tokens": 1e999', 1))
    broken(folder, "answers.jsonl", lambda text: text.replace('"rouge_l": ', '"rouge_l": ' + "9" * 9000, 1))
    broken(folder, "tokens.jsonl", lambda text: text.replace('"log_q": [', '"log_q": [1, ', 1))
    found = read_folder(folder)
    spread = found.metrics["answers"]["plain"][FILES[0]][TEACHER]["figures"]["rouge_l"]
    assert found.notes == [] and (spread["low"], spread["mean"], found.answers[0]["n_tokens"]) == (None, None, None)
    page = write_report(folder).read_text()
    assert "9" * 30 not in page and (folder / "report" / "plots" / "exposure-dolly_test.png").exists()


def test_a_directory_without_a_run_is_refused(tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match="metrics.json: missing; wanted what evaluate.py writes"):
            write_report(place)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(DataError, match=r"metrics\.csv: no whole row"):
        write_report(tmp_path)


ROW = json.dumps({"id": "a", "prompt": "b", "answer": "c"})
BEYOND = "progress/optimizer_step,val/rouge_l\nnan,1\ninf,2\n1,1e308\n2,-1e308\n3,nan\n4,7\n"


@pytest.mark.some(6)
@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("samples/raw.jsonl", b"\xff\x00{\n" + ROW.encode() + b"\n", r"raw\.jsonl, line 1: not JSON"),
        ("samples/raw.jsonl", b"[" * 100_000 + b"\n" + ROW.encode(), r"raw\.jsonl, line 1: not JSON"),
        ("samples/raw.jsonl", None, r"raw\.jsonl: cannot be read"),
        ("metrics.csv", b"progress/optimizer_step,val/rouge_l\nx,1\n2,3\n4", r"metrics\.csv: 2 lines cannot be read"),
        ("metrics.csv", BEYOND.encode(), "4"),
        ("metrics.json", b"{", r"metrics\.json: damaged"),
        ("config.yaml", b"a: [", r"config\.yaml: cannot be read"),
        ("config.yaml", b"a: " + b"[" * 150 + b"]" * 150, "Settings"),
        ("samples/..%2fx.jsonl", ROW.encode(), "%2fx"),
    ],
)
def test_a_training_run_with_a_hostile_file_is_named_and_reported(tmp_path, capsys, name, content, note):
    folder = training_run(tmp_path / "mine")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if content is None else (folder / name).write_bytes(content)
    page = write_report(folder).read_text()
    assert "Learning curves" in page
    assert re.search(note, " ".join(capsys.readouterr().out.split()) + page)


@pytest.mark.slow
def test_hostile_names_of_an_evaluation_stay_in_the_directory_of_the_report(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["calibration"] = {"../../../out": metrics["calibration"]["sst2"]}
    metrics["models"][START]["label"] = "font-family: <b> $x$ \ud83d _{"
    metrics["settings"] = {"seeds": 3, "deep": json.loads("[" * 400 + "]" * 400)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    before = {*folder.parent.rglob("*")}
    page = write_report(folder)
    made = {file.parent for file in {*folder.parent.rglob("*")} - before - {page.parent}}
    assert made == {page.parent, page.parent / "plots"}
