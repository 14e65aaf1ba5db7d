"""Reading instruction data: JSONL (MiniLLM schema or chat messages), a hub data set, or the built-in prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from minillm.common.errors import DataError, first_line

BUILTIN = {"builtin": "train.jsonl", "builtin:validation": "validation.jsonl"}
_SHOWN = 10  # problems in one message
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

    @property
    def question(self) -> str:
        """Instruction and input as one user turn."""
        return f"{self.instruction}\n\n{self.input}" if self.input.strip() else self.instruction

    @property
    def conversation(self) -> str:
        """All turns as a person or a judge reads them; the question alone where nothing came before."""
        if not self.history:
            return self.question
        return "\n\n".join(f"{role}: {text}" for role, text in (*self.history, ("user", self.question)))


def read_records(source: str) -> list[Record]:
    """All records of a .jsonl file, `builtin`, `builtin:validation`, or a hub data set `owner/name[:split]`.

    Raises:
        DataError: naming source, line and key of up to ten problems; or that nothing is there.
    """
    return parse_rows(source, _rows(source), _record, "the key instruction or messages")


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
            problems.append(str(problem))
    if problems:
        rest = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        raise DataError(f"{source}: {len(problems)} unusable rows:\n{lines}{rest}")
    if not records:
        raise DataError(f"{source}: no records; wanted at least one JSON object a line with {wanted}")
    return records


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(`file:line`, parsed value or the DataError it gave) of every line that is not blank; with or without a BOM.

    Raises:
        DataError: the file cannot be read, or is one JSON array.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            first = True
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    if first and line.lstrip().startswith("["):
                        raise DataError(
                            f"{path}: a JSON array; wanted one JSON object a line. To convert it: python -c 'import "
                            "json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]' < FILE > FILE.jsonl"
                        )
                    first = False
                    where = f"{path}:{number}"
                    try:
                        yield where, json.loads(line.rstrip("\n"))
                    except RecursionError:
                        yield where, DataError(f"{where}: lists or objects nested too deeply")
                    except ValueError as error:  # JSONDecodeError, or a number beyond Python's limit on digits
                        reason = (
                            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                        )
                        yield where, DataError(f"{where}: not JSON ({reason})")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert the file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); change the data setting that names it") from error


def _rows(source: str) -> Iterable[tuple[str, object]]:
    if source in BUILTIN:
        return json_lines(Path(__file__).parent / "builtin" / BUILTIN[source])
    if is_hub_name(source, (".jsonl", ".json")):
        return _hub_rows(source)
    return json_lines(Path(source).expanduser())


def is_hub_name(source: str, suffixes: tuple[str, ...]) -> bool:
    """Is it `owner/name[:split]` and not a path? Nothing is there, and it does not end like a file with data."""
    path = Path(source).expanduser()
    like_a_file = path.suffix in suffixes or source.startswith((".", "~", "/"))
    return not path.exists() and not like_a_file and source.count("/") == 1


def _hub_rows(source: str) -> Iterator[tuple[str, object]]:
    import datasets

    name, _, split = source.partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: cannot load this hub data set ({first_line(error)}); check the name and split, log in if it is "
            "gated, or download it elsewhere and give a .jsonl file"
        ) from error
    for number, row in enumerate(rows, start=1):
        row = {key: value for key, value in row.items() if value is not None}
        # Dolly's own names for the MiniLLM schema.
        row.setdefault("input", row.get("context", ""))
        if "output" not in row and "response" in row:
            row["output"] = row["response"]
        yield f"{source}:{number}", row


def _record(where: str, row: dict) -> Record:
    truncated = row.get("truncated", False)
    if not isinstance(truncated, bool):
        raise DataError(f"{where}: key truncated: wanted true or false, got {truncated!r}")
    if "messages" in row:
        return replace(_chat_record(where, row["messages"]), truncated=truncated)
    if "instruction" not in row:
        raise DataError(f"{where}: key instruction (or messages) is missing; got {', '.join(row) or 'no keys'}")
    instruction = _text(where, "instruction", row["instruction"])
    if not instruction.strip():
        raise DataError(f"{where}: key instruction is empty")
    output = row.get("output")
    outputs = [] if output is None else output if isinstance(output, list) else [output]
    references = tuple(_text(where, "output", text) for text in outputs)
    question = _text(where, "input", row.get("input", ""))
    return Record(where, instruction, question, tuple(filter(str.strip, references)), truncated=truncated)


def _chat_record(where: str, messages: object) -> Record:
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in messages
    ):
        raise DataError(f"{where}: key messages: wanted a list of objects with role and content")
    unknown = dict.fromkeys(repr(turn["role"]) for turn in messages if turn["role"] not in _ROLES)
    if unknown:
        raise DataError(f"{where}: key messages: role {', '.join(unknown)}: wanted one of {', '.join(_ROLES)}")
    turns = [(turn["role"], _text(where, "messages.content", turn["content"])) for turn in messages]
    references = (turns.pop()[1],) if turns and turns[-1][0] == "assistant" else ()
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise DataError(f"{where}: key messages: wanted a last user turn that is not empty before the answer")
    return Record(where, turns[-1][1], references=tuple(filter(str.strip, references)), history=tuple(turns[:-1]))


def _text(where: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: key {key}: wanted text, got {type(value).__name__}")
    require_unicode(where, key, value)
    return value


def require_unicode(where: str, key: str, text: str) -> None:
    """Raises DataError: JSON can say half of a surrogate pair (\\ud83d), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: key {key}: not Unicode ({error.reason} at character {error.start})") from error
