"""What a report reads: a broken file is named with what was wanted."""

import json

import pytest

from minillm.common.errors import DataError
from minillm.evaluation.report import read_folder, write_report
from tests.evaluation_files import FILES, START, TEACHER, write_evaluation


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
BROKEN = [
    ("metrics.json", lambda text: None, r"metrics\.json: missing, so the evaluation is not finished"),
    ("metrics.json", lambda text: text[:-9], r"metrics\.json: cannot be read as JSON"),
    ("metrics.json", lambda text: "[1]", r"metrics\.json: the whole: wanted a JSON object"),
    ("metrics.json", edit("models", value=None), r"metrics\.json: models: wanted a JSON object"),
    ("metrics.json", edit("models", value={}), r"models: wanted at least one model"),
    (
        "metrics.json",
        edit(*PLAIN, TEACHER, value={}),
        rf"answers\.plain\.{FILES[0]}\.{TEACHER}\.figures: wanted a JSON",
    ),
    ("metrics.json", edit(*LOW, value="x"), r"rouge_l: wanted mean, deviation, low"),
    ("metrics.json", edit(*PLAIN, "other", value={}), r"wanted models that models lists, not 'other'"),
    ("metrics.json", edit("exposure", FILES[0], START, "low", value=[1]), r"excess, low, high of one length"),
    ("metrics.json", edit(*KL, "alive", value=1), r"each a list of numbers or null"),
    ("metrics.json", edit("calibration", "sst2", START, "bins", value=[{}]), r"bins: wanted low, high, count"),
    ("metrics.json", edit("judge", value={"plain": {FILES[0]: {START: {"items": "x"}}}}), r"judge.*: wanted counts"),
    ("metrics.json", edit("exposure", FILES[0], START, "first_token", value="x"), r"first_token: wanted a number"),
    ("answers.jsonl", lambda text: None, r"answers\.jsonl: missing; wanted the answers"),
    ("answers.jsonl", lambda text: text[:-9], r"answers\.jsonl, line 180: not JSON"),
    ("answers.jsonl", lambda text: text + '{"model": "x"}\n', r"line 181: file is missing; wanted model, file"),
    ("answers.jsonl", lambda text: text.replace(START, "other", 1), r"line 61: model 'other' is not in metrics\.json"),
    (
        "answers.jsonl",
        lambda text: text.replace('"references": [', '"references": [1, ', 1),
        r"line 1: references=\[1, ",
    ),
    (
        "answers.jsonl",
        lambda text: text.replace('"n_tokens": ', '"n_tokens": 1e999', 1),
        r"line 1: n_tokens=inf; wanted",
    ),
    (
        "tokens.jsonl",
        lambda text: text.replace('"log_q": [', '"log_q": [1, ', 1),
        r"line 1: wanted tokens .texts., log_q",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_a_broken_file_is_named_with_what_was_wanted(tmp_path, name, change, message):
    folder = write_evaluation(tmp_path / "paper", prompts=5)
    broken(folder, name, change)
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such directory; wanted one of evaluate.py"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nothing to report; wanted metrics.json and answers.jsonl"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(DataError, match=r"metrics\.csv: no whole row"):
        write_report(tmp_path)
