"""What a run left behind, read for the report. Broken lines are left out and named; without figures there is none."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one on Python 3.11

from minillm.common.errors import DataError
from minillm.common.labels import file_labels
from minillm.common.read import RunFiles, whole_rows
from minillm.evaluation.metrics.figures import FIGURES, Figure
from minillm.evaluation.rows import cells, files_of

# A page shows the first prompts of each file with all their answers: at most so many prompts, and as many as keep all
# files together within so many characters. An answer counts as 1,200 at least. More would be too large to open.
SHOWN, MOST_CHARACTERS, LEAST = 100, 12_000_000, 1_200
LARGEST = 10**15  # no figure of ours is as large; beyond it plots and the browser's numbers fail
_STAGES = 5  # of a training run: columns of its samples

# metrics.json and the lines of the other files, as far as the page uses them; other keys may be there.
Number, Count = float | None, int | None


class Spread(TypedDict):
    mean: Number
    deviation: Number
    low: Number
    high: Number
    n: Count


class Curve(TypedDict):
    mean: list[Number]
    alive: list[Count]


_INTERVAL = NotRequired[Annotated[list[Number], Field(min_length=2, max_length=2)] | None]


def _each(shape: Any) -> Any:
    """By file or task, then by model."""
    return dict[str, dict[str, shape]]


_MODEL = {"label": str, "role": str, "parameters": NotRequired[Number]}
_OWN = {"key": str, "name": str, "digits": Annotated[int, Field(ge=0, le=20)], "better": Literal[-1, 0, 1],
        "heading": str}  # fmt: skip
_ENTRY = {"figures": dict[str, Spread], "by_length": NotRequired[_each(Spread)]}
_EXPOSURE = {"excess": list[Number], "low": list[Number], "high": list[Number], "student": Curve, "teacher": Curve,
             "first_token": NotRequired[Number]}  # fmt: skip
_BIN = {"low": float, "high": float, "count": Count, "confidence": Number, "accuracy": Number}
_CALIBRATION = {
    "ece": Number, "accuracy": Number, "bins": list[TypedDict("Bin", _BIN)], "n": NotRequired[Count],
    "dropped": NotRequired[Count], "words": NotRequired[list[str]], "ece_interval": _INTERVAL,
    "accuracy_interval": _INTERVAL,
}  # fmt: skip
METRICS = TypeAdapter(TypedDict("Metrics", {
    "models": Annotated[dict[str, TypedDict("Model", _MODEL)], Field(min_length=1)],
    "answers": dict[str, _each(TypedDict("Entry", _ENTRY))],
    "figures": NotRequired[dict[str, TypedDict("Own", _OWN)]],
    "judge": NotRequired[dict[str, _each(dict[str, Count])]],
    "reference_loss": NotRequired[_each(Spread)],
    "position": NotRequired[_each(dict[str, Curve])],
    "exposure": NotRequired[_each(TypedDict("Exposure", _EXPOSURE))],
    "calibration": NotRequired[_each(TypedDict("Calibration", _CALIBRATION))],
    "settings": NotRequired[dict[str, Any]], "teacher": NotRequired[str | None], "notes": NotRequired[list[str]],
}))  # fmt: skip
_WHERE = {"model": str, "file": str, "decoding": str}
_SAMPLE = {
    "id": str, "prompt": str, "answer": str, "seed": NotRequired[Count], "truncated": NotRequired[bool | None],
    "references": NotRequired[list[str] | None], "n_tokens": NotRequired[Count], "teacher": NotRequired[str],
    "greedy": NotRequired[str],
} | {name: NotRequired[Number] for name in ("reverse_kl", "rouge_l", "exact_match")}  # fmt: skip
SAMPLE = TypeAdapter(TypedDict("Sample", _SAMPLE))
ANSWER = TypeAdapter(TypedDict("Answer", _WHERE | _SAMPLE))
_TOKENS = {"id": str, "seed": NotRequired[Count], "tokens": list[str], "log_q": list[Number], "log_p": list[Number]}
TOKENS = TypeAdapter(TypedDict("Tokens", _WHERE | _TOKENS))


def whole_characters(text: str) -> str:
    """JSON may hold half a character (a lone surrogate), which no file can be written with."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


@dataclass(frozen=True)
class Model:
    """`style` is 0 for the teacher and 1, 2, ... for students: what tells their curves apart."""

    source: str
    label: str
    role: str
    parameters: float | None
    style: int


@dataclass(frozen=True)
class Evaluation:
    """`figures` by key, those of one's own among them; `files`: short names of the data files; `answers`:
    those of the first `shown` prompts of each file, out of `n_answers`; `notes`: what is broken."""

    metrics: dict[str, Any]
    models: list[Model]
    figures: dict[str, Figure]
    decodings: list[str]
    files: dict[str, str]
    answers: list[dict] = field(repr=False)
    n_answers: int
    shown: int
    tokens: list[dict] = field(repr=False)
    notes: list[str]

    def cells(self, decoding: str, file: str, source: str) -> dict[str, dict]:
        """By figure, see `minillm.evaluation.rows.cells`."""
        return cells(self.metrics, decoding, file, source)

    def entries(self, name: str, file: str) -> list[tuple[Model, dict]]:
        """What a part of metrics.json (position, exposure, ...) has for a file or task, in the order of the models."""
        found = self.metrics.get(name, {}).get(file, {})
        return [(model, found[model.source]) for model in self.models if model.source in found]


@dataclass(frozen=True)
class Training:
    """One training run; `models`: its stages (raw, start, step_100, ...), and the teacher where it has answers.
    `against`: what Rouge-L is measured against."""

    run: RunFiles
    models: list[Model]
    answers: list[dict] = field(repr=False)
    notes: list[str]
    against: str | None
    files: dict[str, str] = field(default_factory=dict)
    tokens: tuple = ()


def read_folder(folder: Path) -> Evaluation | Training:
    """An evaluation or a training run.

    Raises:
        DataError: neither is there, or its figures cannot be used.
    """
    metrics, answers = folder / "metrics.json", folder / "answers.jsonl"
    if not answers.exists() and ((folder / "config.yaml").exists() or (folder / "metrics.csv").exists()):
        return _training(folder)
    if not metrics.exists():
        raise DataError(
            f"{metrics}: missing; wanted what evaluate.py writes at its end (the same command goes on with what is not "
            "finished), or config.yaml and metrics.csv of a training run"
        )
    return _evaluation(folder, metrics, answers)


def _training(folder: Path) -> Training:
    run = RunFiles.read(folder)
    if not run.rows:
        raise DataError(f"{folder / 'metrics.csv'}: no whole row; wanted the figures of a training run")
    files = sorted((folder / "samples").glob("*.jsonl"), key=_stage)
    if len(files) > _STAGES:  # the first two, the last, and some between
        chosen = {0, 1, *(2 + round(i * (len(files) - 3) / (_STAGES - 3)) for i in range(_STAGES - 2))}
        files = [files[number] for number in sorted(chosen)]
    notes = [run.note] if run.note else []
    if left_out := len(whole_rows(folder / "metrics.csv")[1]):
        notes.append(f"{folder / 'metrics.csv'}: {left_out} lines cannot be read and are left out")
    stages = {file.stem: list(_rows(file, SAMPLE, notes)) for file in files}
    kept = ("id", "prompt", "references", "seed")
    first = next(iter(stages.values()), [])  # the teacher's answers are the same at every stage

    def texts(rows: list[dict], name: str) -> list[dict]:
        return [{key: row.get(key) for key in kept} | {"answer": row[name]} for row in rows if name in row]

    teacher = texts(first, "teacher")
    if any("greedy" in row for row in first):
        stages = {f"{name} (greedy)": texts(rows, "greedy") for name, rows in stages.items()}
    columns = ({"teacher (greedy)": teacher} if teacher else {}) | stages
    models = [
        Model(name, name.replace("_", " "), "student", None, style)
        for style, name in enumerate(columns, start=0 if teacher else 1)
    ]
    place = {"file": "validation", "decoding": "validation"}
    answers = [row | place | {"model": name} for name, rows in columns.items() for row in rows]
    against = None
    if any("references" in row for row in first):  # else of an earlier version
        against = "the references" if all(row.get("references") for row in first) else "the teacher’s greedy answers"
    return Training(run, models, answers, notes, against)


def _stage(file: Path) -> tuple[int, int]:
    number = file.stem.rpartition("_")[2]
    return {"raw": 0, "start": 1}.get(file.stem, 2), int(number) if re.fullmatch("[0-9]{1,18}", number) else 0


def _evaluation(folder: Path, file: Path, answers: Path) -> Evaluation:
    try:
        metrics = _parsed(METRICS, file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}; wanted what evaluate.py writes") from error
    students = [source for source, each in metrics["models"].items() if each["role"] != "teacher"]
    styles = {source: number for number, source in enumerate(students, start=1)}
    models = [
        Model(source, each["label"], each["role"], each.get("parameters"), styles.get(source, 0))
        for source, each in metrics["models"].items()
    ]
    own = (Figure(**each) for each in metrics.get("figures", {}).values())
    figures = {figure.key: figure for figure in (*FIGURES, *own)}
    notes, rows, n_answers, places = [], [], 0, {}  # places: number of each id by file
    for row in _rows(answers, ANSWER, notes, metrics["models"]):
        n_answers += 1
        prompts = places.setdefault(row["file"], {})
        if row["id"] in prompts or len(prompts) < SHOWN:
            rows.append((prompts.setdefault(row["id"], len(prompts)), row))
    sizes = Counter()
    for place, row in rows:
        sizes[place] += max(LEAST, len(row["answer"]))
    shown = max(1, sum(total <= MOST_CHARACTERS for total in accumulate(sizes[place] for place in sorted(sizes))))
    tokens = folder / "tokens.jsonl"
    coloured = list(_rows(tokens, TOKENS, notes, metrics["models"])) if tokens.exists() else []
    files = file_labels(files_of(metrics))
    rows = [row for place, row in rows if place < shown]
    decodings = list(metrics["answers"])
    return Evaluation(metrics, models, figures, decodings, files, rows, n_answers, shown, coloured, notes)


def _rows(file: Path, shape: TypeAdapter, notes: list[str], models: dict | None = None) -> Iterator[dict]:
    """The lines that can be used; `notes` gets how many cannot, and what is wrong with the first."""
    wrong = []
    try:
        if not file.is_file():
            raise FileNotFoundError("no such file")
        with open(file, encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    row = _parsed(shape, line)
                    if models and row["model"] not in models:
                        raise ValueError(f"model {row['model']!r:.60} is not in metrics.json")
                    yield row
                except ValueError as error:
                    wrong.append(f"line {number}: {error}")
    except OSError as error:
        notes.append(f"{file}: cannot be read ({error})")
    if wrong:
        notes.append(f"{file}, {wrong[0]}; lines left out: {len(wrong)}")


def _parsed(shape: TypeAdapter, text: str) -> dict:
    """NaN, Infinity and numbers beyond LARGEST count as null, where there is no value. Raises ValueError with one
    line."""
    try:
        found = json.loads(text, parse_constant=lambda _: None, parse_int=_int, parse_float=_float)
        if re.search(r"\\u[dD]", text):
            found = json.loads(whole_characters(json.dumps(found, ensure_ascii=False)))
        return shape.validate_python(found, strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        where = ".".join(map(str, first["loc"])) or "the whole"
        got = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
        more = f"; problems: {len(others) + 1}" if others else ""
        raise ValueError(f"{where}: {first['msg']}{got}{more}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error


def _float(text: str) -> float | None:
    value = float(text)
    return value if abs(value) <= LARGEST else None


def _int(text: str) -> int | None:
    return int(text) if len(text) < 20 and abs(int(text)) <= LARGEST else None
