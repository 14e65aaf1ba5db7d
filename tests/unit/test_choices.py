"""Labelled rows become prompts whose reference is the label's word."""

import json

import pytest

from minillm.common.errors import ConfigError, DataError
from minillm.data import ChoiceTask, read_choices

TASK = ChoiceTask(instruction="Is {{this}} true: {claim}?", input="{text}", words=("no", "yes"))


def write(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_fills_the_prompt_and_its_label_chooses_the_reference(tmp_path):
    rows = [{"claim": " a {b} ", "text": "ünïcode 猫", "label": 1, "more": 5}, {"claim": "c", "text": "", "label": 0}]
    path = write(tmp_path, *rows)
    first, second = read_choices(path, TASK)
    assert (first.instruction, first.input) == ("Is {this} true:  a {b} ?", "ünïcode 猫")
    assert first.references == ("yes",) and second.references == ("no",) and second.input == ""
    assert first.id == f"{path}:1"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"claim": "a", "text": "b"}, "key label is missing; got claim, text"),
        ({"label": 1}, "key claim, text is missing"),
        ({"claim": 3, "text": "b", "label": 1}, "key claim: wanted text, got int"),
        ({"claim": "a", "text": "b\ud83d", "label": 1}, "key text: not Unicode .surrogates not allowed at character 1"),
        ({"claim": "a", "text": "b", "label": "1"}, "key label: wanted an integer .*, got '1'"),
        ({"claim": "a", "text": "b", "label": True}, "key label: wanted an integer .*, got True"),
        (
            {"claim": "a", "text": "b", "label": 2},
            r"key label: wanted an integer from 0 to 1 \(words=\['no', 'yes'\]\), got 2",
        ),
        ({"claim": "a", "text": "b", "label": -1}, "key label: wanted .*, got -1"),
        ([1], "wanted a JSON object, got list"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, text):
    path = write(tmp_path, {"claim": "a", "text": "b", "label": 0}, row)
    with pytest.raises(
        DataError, match=f"1 unusable rows; wanted one JSON object a line, with .*:\n  {path}:2: {text}"
    ):
        read_choices(path, TASK)


def test_an_empty_and_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no records; wanted .* the keys claim, text, label"):
        read_choices(write(tmp_path), TASK)
    with pytest.raises(DataError, match="cannot be read"):
        read_choices(tmp_path / "none.jsonl", TASK)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(words=("yes",)), "wanted a text for each label, each another, two at least"),
        (dict(words=("yes", " ")), "wanted a text for each label"),
        (dict(words=("yes", "yes")), "wanted a text for each label"),
        (dict(input="{text"), "input='{text': wanted keys of the data in braces"),
        (dict(input="{}"), "input='{}': wanted keys"),
        (dict(instruction="a", input="b"), "neither shows a key of the data"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        ChoiceTask(**{"instruction": "{claim}", "input": "{text}", "words": ("no", "yes")} | change)
