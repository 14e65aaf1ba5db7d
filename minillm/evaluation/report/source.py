"""What a run left behind, read for the report. Broken lines are left out and named; without figures there is none."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one on Python 3.11

from minillm.common.errors import DataError
from minillm.common.labels import file_labels
from minillm.common.read import RunFiles, whole_rows
from minillm.evaluation.metrics.figures import FIGURES, Figure

# A page shows the first prompts of each file with all their answers: at most so many prompts, and as many as keep all
# files together within so many characters. An answer counts as 1,200 at least. More would be too large to open.
SHOWN, MOST_CHARACTERS, LEAST = 100, 12_000_000, 1_200
LARGEST = 10**15  # no figure of ours is as large; beyond it plots and the browser's numbers fail
_BY_FILE = ("reference_loss", "position", "exposure")
_STAGES = 5  # of a training run: columns of its samples


def whole_characters(text: Any) -> Any:
    """JSON may hold half a character (a lone surrogate), which no file can be written with."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text) if isinstance(text, str) else text


def _one_length(found: dict) -> dict:
    names = [name for name, value in found.items() if isinstance(value, list)]
    if len({len(found[name]) for name in names}) > 1:
        raise ValueError(f"{', '.join(names)} should be of one length")
    return found


# metrics.json and the lines of the other files, as far as the page uses them; other keys may be there.
Text = Annotated[str, BeforeValidator(whole_characters)]
Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Number = Finite | None
Count = Annotated[int, Field(ge=0, le=LARGEST)] | None


class Facts(TypedDict):
    label: Text
    role: Text
    parameters: NotRequired[Number]


class Own(TypedDict):
    key: Text
    name: Text
    digits: Annotated[int, Field(ge=0, le=20)]
    better: Literal[-1, 0, 1]
    heading: Text


class Spread(TypedDict):
    mean: Number
    deviation: Number
    low: Number
    high: Number
    n: Count


class Entry(TypedDict):
    figures: dict[str, Spread]
    by_length: NotRequired[dict[str, dict[str, Spread]]]


Curve = Annotated[TypedDict("Curve", {"mean": list[Number], "alive": list[Count]}), AfterValidator(_one_length)]
Exposure = Annotated[
    TypedDict("Exposure", {"excess": list[Number], "low": list[Number], "high": list[Number], "student": Curve,
                           "teacher": Curve, "first_token": NotRequired[Number]}),
    AfterValidator(_one_length),
]  # fmt: skip


class Bin(TypedDict):
    low: Finite
    high: Finite
    count: Count
    confidence: Number
    accuracy: Number


Interval = Annotated[list[Number], Field(min_length=2, max_length=2)] | None


class Calibration(TypedDict):
    ece: Number
    accuracy: Number
    bins: list[Bin]
    n: NotRequired[Count]
    dropped: NotRequired[Count]
    ece_interval: NotRequired[Interval]
    accuracy_interval: NotRequired[Interval]
    words: NotRequired[list[Text]]


T = TypeVar("T")
Each = dict[str, dict[str, T]]  # by file or task, then by model
METRICS = TypeAdapter(TypedDict("Metrics", {
    "models": Annotated[dict[str, Facts], Field(min_length=1)], "answers": dict[str, Each[Entry]],
    "figures": NotRequired[dict[str, Own]], "judge": NotRequired[dict[str, Each[dict[str, Count]]]],
    "reference_loss": NotRequired[Each[Spread]], "position": NotRequired[Each[dict[str, Curve]]],
    "exposure": NotRequired[Each[Exposure]], "calibration": NotRequired[Each[Calibration]],
    "settings": NotRequired[dict[str, Any]], "teacher": NotRequired[Text | None], "notes": NotRequired[list[Text]],
}))  # fmt: skip
_WHERE = {"model": Text, "file": Text, "decoding": Text}
_SAMPLE = {
    "id": Text, "prompt": Text, "answer": Text, "seed": NotRequired[Count], "truncated": NotRequired[bool | None],
    "references": NotRequired[list[Text] | None], "n_tokens": NotRequired[Count], "teacher": NotRequired[Text],
} | {name: NotRequired[Number] for name in ("reverse_kl", "rouge_l", "exact_match")}  # fmt: skip
SAMPLE = TypeAdapter(TypedDict("Sample", _SAMPLE))
ANSWER = TypeAdapter(TypedDict("Answer", _WHERE | _SAMPLE))
_TOKENS = _WHERE | {
    "id": Text, "seed": NotRequired[Count], "tokens": list[Text], "log_q": list[Number], "log_p": list[Number],
}  # fmt: skip
TOKENS = TypeAdapter(Annotated[TypedDict("Tokens", _TOKENS), AfterValidator(_one_length)])


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
    """`figures` by key, those of one's own among them; `files`: short names of the data files; `runs`: the training
    runs that models lie in; `answers`: those of the first `shown` prompts of each file, out of `n_answers`; `notes`:
    what is broken."""

    metrics: dict[str, Any]
    models: list[Model]
    figures: dict[str, Figure]
    decodings: list[str]
    files: dict[str, str]
    answers: list[dict] = field(repr=False)
    n_answers: int
    shown: int
    tokens: list[dict] = field(repr=False)
    runs: dict[str, RunFiles] = field(repr=False)
    notes: list[str]

    def cells(self, decoding: str, file: str, source: str) -> dict[str, Spread]:
        """By figure; those by length of the reference as `rouge_l@0-5`. The loss on references is the same in every
        decoding."""
        entry = self.metrics["answers"][decoding].get(file, {}).get(source, {"figures": {}})
        loss = self.metrics.get("reference_loss", {}).get(file, {}).get(source)
        found = entry["figures"] | ({"reference_loss": loss} if loss else {})
        for name, figures in entry.get("by_length", {}).items():
            found |= {f"{key}@{name}": cell for key, cell in figures.items()}
        return found

    def entries(self, name: str, file: str) -> list[tuple[Model, dict]]:
        """What a part of metrics.json (position, exposure, ...) has for a file or task, in the order of the models."""
        found = self.metrics.get(name, {}).get(file, {})
        return [(model, found[model.source]) for model in self.models if model.source in found]


@dataclass(frozen=True)
class Training:
    """One training run; `samples`: answers by stage (raw, start, step_100, ...)."""

    run: RunFiles
    samples: dict[str, list[dict]] = field(repr=False)
    notes: list[str]


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
    return Training(run, {file.stem: list(_rows(file, SAMPLE, notes)) for file in files}, notes)


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
    parts = [*metrics["answers"].values(), *(metrics.get(key, {}) for key in _BY_FILE)]
    files = file_labels(list(dict.fromkeys(name for part in parts for name in part)))
    runs = {model.source: run for model in models if (run := run_of(folder, model.source))}
    rows = [row for place, row in rows if place < shown]
    decodings = list(metrics["answers"])
    return Evaluation(metrics, models, figures, decodings, files, rows, n_answers, shown, coloured, runs, notes)


def run_of(folder: Path, source: str) -> RunFiles | None:
    """The training run that made the model: runs/x/student lies in runs/x."""
    try:
        for base in (Path(), folder.resolve().parent.parent):
            run = (base / Path(source).expanduser()).parent
            if (run / "metrics.csv").is_file():
                return RunFiles.read(run)
    except (OSError, RuntimeError):  # a name that no path can have, or the home of nobody
        return None
    return None


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
    """NaN and Infinity count as null, where there is no value. Raises ValueError with one line."""
    try:
        return shape.validate_python(json.loads(text, parse_constant=lambda _: None), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        where = ".".join(map(str, found[0]["loc"])) or "the whole"
        got = "" if found[0]["type"] == "missing" else f", got {found[0]['input']!r:.60}"
        more = f"; problems: {len(found)}" if len(found) > 1 else ""
        raise ValueError(f"{where}: {found[0]['msg']}{got}{more}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
