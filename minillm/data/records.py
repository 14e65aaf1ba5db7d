"""Reading instruction data: JSONL, Parquet (MiniLLM schema or chat messages), a hub data set, the built-in prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from minillm.common.errors import DataError, first_line
from minillm.common.hub import hub_id, notice_offline

BUILTIN = {"builtin": "train.jsonl", "builtin:validation": "validation.jsonl"}
ROWS = (".jsonl", ".json", ".parquet")  # files with a record a row
_SHOWN = 10  # problems in one message
_KEYS = "instruction (with output, and input if there is one) or messages"
TEACHER_KEYS = ("teacher_system", "teacher_context")
_ROLES = ("system", "developer", "user", "assistant", "tool")


class Dropped(DataError):
    """Of one record, which is dropped and counted; the message is the reason."""


@dataclass(frozen=True)
class Record:
    """One prompt. `id` is `file:line`; `history` holds earlier chat turns, system included; references may be empty.
    Texts are as the data gives them, white space at their ends included."""

    id: str
    instruction: str
    input: str = ""
    references: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    truncated: bool = False  # the first reference was cut off: there is no end to learn
    teacher_system: str | None = None  # a system turn that the teacher alone sees
    teacher_context: str | None = None  # text before the question that the teacher alone sees
    teacher: str | None = None  # which of several teachers it has

    @property
    def question(self) -> str:
        """Instruction and input as one user turn."""
        return f"{self.instruction}\n\n{self.input}" if self.input.strip() else self.instruction

    def for_teacher(self, *, system_turn: bool) -> Record:
        """As the teacher sees it: its system turn in the place of the record's own, and its context before the
        question. Without `system_turn`, in a template that has none, that text stands before the context."""
        before, history = [self.teacher_system, self.teacher_context], self.history
        if system_turn and self.teacher_system is not None:
            history = (("system", before.pop(0)), *history[bool(history) and history[0][0] == "system" :])
        instruction = "\n\n".join([*(text for text in before if text), self.instruction])
        return replace(self, instruction=instruction, history=history)

    @property
    def conversation(self) -> str:
        """All turns as a person or a judge reads them; the question alone where nothing came before."""
        if not self.history:
            return self.question
        return "\n\n".join(f"{role}: {text}" for role, text in (*self.history, ("user", self.question)))


def read_records(source: str, teachers: Sequence[str] | None = None) -> list[Record]:
    """All records of a .jsonl or .parquet file, `builtin`, `builtin:validation`, or a hub data set
    `owner/name[:split]`. Each names one of `teachers` by its key `teacher`; none may, where that is empty; None does
    not read the key.

    Raises:
        DataError: naming source, line and key of up to ten problems; or that nothing is there.
    """
    if source in BUILTIN:
        rows = file_rows(Path(__file__).parent / "builtin" / BUILTIN[source])
    elif hub_id(source, "dataset"):
        rows = _hub_records(source)
    else:
        rows = file_rows(Path(source).expanduser())
    return parse_rows(source, rows, partial(_record, teachers), f"the key {_KEYS}")


def parse_rows(
    source: str, rows: Iterable[tuple[str, object]], parse: Callable[[str, dict], Record], wanted: str
) -> list[Record]:
    """`parse` of every (`file:line`, row); a row that could not be read is a DataError and comes up here.

    Raises:
        DataError: up to ten problems of rows; or that no row is there, where one with `wanted` should be.
    """
    records, problems = [], []
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(f"{where}: wanted a JSON object, got {type(row).__name__}")
            records.append(parse(where, row))
        except DataError as problem:
            problems.append(f"\n  {problem}")
    if problems:
        rest = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{source}: {len(problems)} unusable rows; wanted one JSON object a line, with {wanted}:"
            f"{''.join(problems[:_SHOWN])}{rest}"
        )
    if not records:
        raise DataError(f"{source}: no records; wanted at least one JSON object a line with {wanted}")
    return records


def file_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(`file:line`, parsed value or the DataError it gave) of every line that is not blank; with or without a BOM. Of a
    .parquet file (`file:row`, the values that are not null).

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile

            with open(path, "rb") as stream:
                rows = (row for batch in ParquetFile(stream).iter_batches() for row in batch.to_pylist())
                for number, row in enumerate(rows, start=1):
                    yield f"{path}:{number}", {key: value for key, value in row.items() if value is not None}
            return
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parsed(f"{path}:{number}", line)
    except (OSError, ValueError) as error:  # pyarrow's are a ValueError
        why = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{path}: cannot be read ({why}); change the data setting that names it") from error


def _parsed(where: str, line: bytes) -> object:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        what = f"byte 0x{line[error.start]:02x} at place {error.start + 1}"
        return DataError(f"{where}: not UTF-8 ({what}); save the file as UTF-8")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number beyond Python's limit on digits is a ValueError too
        why = str(error).replace(": line 1 column", " at column")
        if text[0] in "[]":
            why = "a JSON array; write its objects one a line: jq -c '.[]' FILE"
        elif text[0] != "{":
            why = "text or CSV, or an object that goes over several lines"
        elif len(text) == getattr(error, "pos", None) or "Unterminated" in why:
            why = "the line ends inside the object: was the file cut?"
        return DataError(f"{where}: not JSON ({why}): {text[:40]}")


def hub_rows(source: str):
    """The rows of a hub data set `owner/name[:split]`, memory mapped from the cache of `datasets`."""
    notice_offline()
    import datasets  # only now: it looks once whether it is offline

    name, _, split = source.partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: cannot read this hub data set ({first_line(error)}); check the name and split, log in if it is "
            "gated, or download it elsewhere and give a .jsonl file"
        ) from error


def _hub_records(source: str) -> Iterator[tuple[str, object]]:
    for number, row in enumerate(hub_rows(source), start=1):
        row = {key: value for key, value in row.items() if value is not None}
        # Dolly's own names for the MiniLLM schema.
        row.setdefault("input", row.get("context", ""))
        if "output" not in row and "response" in row:
            row["output"] = row["response"]
        yield f"{source}:{number}", row


def _record(teachers: Sequence[str] | None, where: str, row: dict) -> Record:
    truncated = row.get("truncated", False)
    if not isinstance(truncated, bool):
        raise DataError(f"{where}: key truncated: wanted true or false, got {truncated!r}")
    own = {key: text_of(where, key, row[key]) for key in TEACHER_KEYS if row.get(key) is not None}
    name = row.get("teacher")
    if teachers is not None and name not in (teachers or (None,)):
        wanted = f"a name in model.teachers ({', '.join(teachers)})" if teachers else "none without model.teachers"
        raise DataError(f"{where}: key teacher: wanted {wanted}, got {'no such key' if name is None else repr(name)}")
    own["teacher"] = name if teachers else None
    if "messages" in row:
        return replace(_chat_record(where, row["messages"]), truncated=truncated, **own)
    if "instruction" not in row:
        raise DataError(f"{where}: key instruction (or messages) is missing; got {', '.join(row) or 'no keys'}")
    instruction = text_of(where, "instruction", row["instruction"])
    if not instruction.strip():
        raise DataError(f"{where}: key instruction is empty")
    output = row.get("output")
    outputs = [] if output is None else output if isinstance(output, list) else [output]
    references = tuple(text_of(where, "output", text) for text in outputs)
    question = text_of(where, "input", row.get("input", ""))
    return Record(where, instruction, question, tuple(filter(str.strip, references)), truncated=truncated, **own)


def _chat_record(where: str, messages: object) -> Record:
    turns = messages if isinstance(messages, list) else [None]
    if not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns):
        raise DataError(f"{where}: key messages: wanted a list of objects with role and content")
    unknown = dict.fromkeys(repr(turn["role"]) for turn in messages if turn["role"] not in _ROLES)
    if unknown:
        raise DataError(f"{where}: key messages: role {', '.join(unknown)}: wanted one of {', '.join(_ROLES)}")
    turns = [(turn["role"], text_of(where, "messages.content", turn["content"])) for turn in messages]
    references = (turns.pop()[1],) if turns and turns[-1][0] == "assistant" else ()
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise DataError(f"{where}: key messages: wanted a last user turn that is not empty before the answer")
    return Record(where, turns[-1][1], references=tuple(filter(str.strip, references)), history=tuple(turns[:-1]))


def text_of(where: str, key: str, value: object) -> str:
    """The value, if it is text. JSON can say half of a surrogate pair (\\ud83d), which no tokenizer takes."""
    if not isinstance(value, str):
        raise DataError(f"{where}: key {key}: wanted text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: key {key}: not Unicode ({error.reason} at character {error.start})") from error
    return value
