"""Classification as zero-shot choice: rows with a label become prompts whose reference is the label's word."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Formatter

from minillm.common.errors import DataError, check
from minillm.data.records import Record, json_lines, parse_rows, require_unicode


@dataclass(frozen=True)
class ChoiceTask:
    """`instruction` and `input` of the prompt, with the rows' own keys in braces, and `words`: word i answers label i.

    The words are written as an answer begins, without a space in front.
    """

    instruction: str
    words: tuple[str, ...]
    input: str = ""

    def __post_init__(self):
        words = f"words={list(self.words)}"
        check(
            (len(self.words) > 1, f"{words}: wanted a word for each label, at least two"),
            (all(word.strip() for word in self.words), f"{words}: a label word is empty; wanted text"),
            (len(set(self.words)) == len(self.words), f"{words}: wanted different words"),
            *(
                (
                    _well_formed(template),
                    f"{key}={template!r}: wanted keys of the data in braces, like {{text}}, and {{{{ for a brace",
                )
                for key, template in (("instruction", self.instruction), ("input", self.input))
            ),
        )
        check((bool(self.fields), "instruction, input: neither shows a key of the data, for example {text}"))

    @property
    def fields(self) -> list[str]:
        """Keys of the data that the prompt shows."""
        return sorted(_names(self.instruction) | _names(self.input))


def read_choices(path: str | Path, task: ChoiceTask) -> list[Record]:
    """One record a row of a .jsonl file with the keys that `task` shows and an integer `label`; the record's one
    reference is its label's word.

    Raises:
        DataError: naming line and key of up to ten problems, a label without a word among them; or no row is there.
    """
    rows = json_lines(Path(path).expanduser())
    keys = ", ".join([*task.fields, "label"])
    return parse_rows(str(path), rows, partial(_record, task), f"the keys {keys}")


def _record(task: ChoiceTask, where: str, row: dict) -> Record:
    missing = [key for key in [*task.fields, "label"] if key not in row]
    if missing:
        raise DataError(f"{where}: key {', '.join(missing)} is missing; got {', '.join(row) or 'no keys'}")
    for key in task.fields:
        if not isinstance(row[key], str):
            raise DataError(f"{where}: key {key}: wanted text, got {type(row[key]).__name__}")
        require_unicode(where, key, row[key])
    label = row["label"]
    if type(label) is not int:
        raise DataError(f"{where}: key label: wanted an integer, got {label!r}")
    if not 0 <= label < len(task.words):
        raise DataError(
            f"{where}: label {label} has no word; words={list(task.words)} answer 0 to {len(task.words) - 1}"
        )
    return Record(
        id=where,
        instruction=task.instruction.format_map(row),
        input=task.input.format_map(row),
        references=(task.words[label],),
    )


def _well_formed(template: str) -> bool:
    try:
        return all(name.isidentifier() for name in _names(template))
    except ValueError:  # a brace without its other half
        return False


def _names(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
