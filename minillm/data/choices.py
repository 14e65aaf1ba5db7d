"""Classification as zero-shot choice: rows with a label become prompts whose reference is the label's word."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Formatter

from minillm.common.errors import DataError, check
from minillm.data.records import Record, file_rows, parse_rows, text_of


@dataclass(frozen=True)
class ChoiceTask:
    """`instruction` and `input` of the prompt, with the rows' own keys in braces, and `words`: word i answers label i.

    The words are written as an answer begins, without a space in front.
    """

    instruction: str
    words: tuple[str, ...]
    input: str = ""

    def __post_init__(self):
        different = len(self.words) > 1 and len(set(self.words)) == len(self.words) and all(map(str.strip, self.words))
        wanted = "wanted keys of the data in braces, like {text}, and {{ for a brace"
        check(
            (different, f"words={list(self.words)}: wanted a text for each label, each another, two at least"),
            (_well_formed(self.instruction), f"instruction={self.instruction!r}: {wanted}"),
            (_well_formed(self.input), f"input={self.input!r}: {wanted}"),
        )
        check((bool(self.fields), "instruction, input: neither shows a key of the data, for example {text}"))

    @property
    def fields(self) -> list[str]:
        """Keys of the data that the prompt shows."""
        return sorted(_names(self.instruction) | _names(self.input))


def read_choices(path: str | Path, task: ChoiceTask) -> list[Record]:
    """One record a row of a .jsonl file with the keys that `task` shows and an integer `label`; the record's one
    reference is its label's word. Raises DataError, see `parse_rows`."""
    rows = file_rows(Path(path).expanduser())
    keys = ", ".join([*task.fields, "label"])
    return parse_rows(str(path), rows, partial(_record, task), f"the keys {keys}")


def _record(task: ChoiceTask, where: str, row: dict) -> Record:
    missing = [key for key in [*task.fields, "label"] if key not in row]
    if missing:
        raise DataError(f"{where}: key {', '.join(missing)} is missing; got {', '.join(row) or 'no keys'}")
    for key in task.fields:
        text_of(where, key, row[key])
    label, last = row["label"], len(task.words) - 1
    if type(label) is not int or not 0 <= label <= last:
        raise DataError(
            f"{where}: key label: wanted an integer from 0 to {last} (words={list(task.words)}), got {label!r}"
        )
    return Record(where, task.instruction.format_map(row), task.input.format_map(row), references=(task.words[label],))


def _well_formed(template: str) -> bool:
    try:
        return all(name.isidentifier() for name in _names(template))
    except ValueError:  # a brace without its other half
        return False


def _names(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
