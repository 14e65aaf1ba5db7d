"""What a run left behind, read for the report: a file that is missing or broken is named, with what was wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from minillm.common.errors import DataError
from minillm.common.labels import file_labels
from minillm.common.numbers import is_finite
from minillm.common.read import RunFiles
from minillm.evaluation.metrics.figures import FIGURES, Figure

SPREAD = ("mean", "deviation", "low", "high", "n")
_ANSWER = {"model": str, "file": str, "decoding": str, "id": str, "prompt": str, "answer": str}
_TOKENS = {"model": str, "file": str, "decoding": str, "id": str, "tokens": list, "log_q": list, "log_p": list}
# A page shows the first prompts of each file with all their answers: at most so many prompts, and as many as keep all
# files together within so many answers and characters. More would be too large to open.
SHOWN, MOST_ANSWERS, MOST_CHARACTERS = 100, 10_000, 12_000_000
_STAGES = 5  # of a training run: columns of its samples


@dataclass(frozen=True)
class Model:
    """`style` is 0 for the teacher and 1, 2, ... for students: what tells their curves apart."""

    source: str
    label: str
    role: str
    parameters: int | None
    style: int


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is metrics.json; `files` maps each data file to a short name; `runs` are the training runs that the
    models lie in, by model; `answers` are rows of the first `shown` prompts of each file, out of `n_answers` in all;
    `tokens` are rows."""

    folder: Path
    metrics: dict[str, Any]
    models: tuple[Model, ...]
    files: dict[str, str]
    answers: list[dict] = field(repr=False)
    n_answers: int
    shown: int
    tokens: list[dict] = field(repr=False)
    runs: dict[str, RunFiles] = field(repr=False)

    @property
    def figures(self) -> dict[str, Figure]:
        """By key, those of one's own as metrics.json describes them."""
        own = (Figure(**each) for each in (self.metrics.get("figures") or {}).values())
        return {figure.key: figure for figure in (*FIGURES, *own)}

    @property
    def decodings(self) -> tuple[str, ...]:
        return tuple(self.metrics["answers"])


@dataclass(frozen=True)
class Training:
    """One training run; `samples`: rows of answers by stage (raw, start, step_100, ...)."""

    run: RunFiles
    samples: dict[str, list[dict]] = field(repr=False)


def read_folder(folder: Path) -> Evaluation | Training:
    """An evaluation or a training run.

    Raises:
        DataError: neither is there, or a file of it cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory; wanted one of evaluate.py, or of a training run")
    metrics, answers = folder / "metrics.json", folder / "answers.jsonl"
    if (answers.exists() or (folder / "units").is_dir()) and not metrics.exists():
        raise DataError(f"{metrics}: missing, so the evaluation is not finished; the same command goes on with it")
    if not answers.exists() and ((folder / "config.yaml").exists() or (folder / "metrics.csv").exists()):
        return _training(folder)
    if metrics.exists():
        return _evaluation(folder, metrics, answers)
    raise DataError(
        f"{folder}: nothing to report; wanted metrics.json and answers.jsonl of evaluate.py, or config.yaml and "
        "metrics.csv of a training run"
    )


def _training(folder: Path) -> Training:
    run = RunFiles.read(folder)
    if not run.rows:
        raise DataError(f"{folder / 'metrics.csv'}: no whole row; wanted the figures of a training run")
    files = list((folder / "samples").glob("*.jsonl")) if (folder / "samples").is_dir() else []
    files.sort(
        key=lambda file: (["raw", "start"].index(file.stem) if file.stem in ("raw", "start") else 2, _step(file))
    )
    if len(files) > _STAGES:  # the first two, the last, and some between
        chosen = {0, 1, *(2 + round(i * (len(files) - 3) / (_STAGES - 3)) for i in range(_STAGES - 2))}
        files = [files[number] for number in sorted(chosen)]
    wanted = {"id": str, "prompt": str, "answer": str}
    samples = {file.stem: list(_lines(file, wanted)) for file in files}
    for file in files:
        for number, row in enumerate(samples[file.stem], start=1):
            _check_answer(row, f"{file}, line {number}")
    return Training(run, samples)


def _step(file: Path) -> int:
    number = file.stem.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


def _evaluation(folder: Path, file: Path, answers: Path) -> Evaluation:
    metrics = _json(file)
    _check(metrics, file)
    numbers = iter(range(1, len(metrics["models"]) + 1))
    models = tuple(
        Model(
            source,
            each["label"],
            each["role"],
            each.get("parameters"),
            0 if each["role"] == "teacher" else next(numbers),
        )
        for source, each in metrics["models"].items()
    )
    if not answers.exists():
        raise DataError(f"{answers}: missing; wanted the answers that belong to {file.name}")
    tokens = folder / "tokens.jsonl"
    rows, n_answers, places = [], 0, {}
    for n_answers, row in enumerate(_lines(answers, _ANSWER), start=1):
        where = f"{answers}, line {n_answers}"
        _check_model(row, metrics, where)
        _check_answer(row, where)
        prompts = places.setdefault(row["file"], {})
        if row["id"] in prompts or len(prompts) < SHOWN:
            prompts.setdefault(row["id"], len(prompts))
            rows.append(row)
    shown = _fitting(rows, places)
    rows = [row for row in rows if places[row["file"]][row["id"]] < shown]
    coloured = list(_lines(tokens, _TOKENS)) if tokens.exists() else []
    for number, row in enumerate(coloured, start=1):
        _check_model(row, metrics, f"{tokens}, line {number}")
        same = len(row["tokens"]) == len(row["log_q"]) == len(row["log_p"])
        if not same or not all(map(_number, row["log_q"] + row["log_p"])) or not _texts(row["tokens"]):
            raise DataError(f"{tokens}, line {number}: wanted tokens (texts), log_q and log_p (numbers) of one length")
    parts = [
        *metrics["answers"].values(),
        *(metrics.get(key) or {} for key in ("reference_loss", "position", "exposure")),
    ]
    names = list(dict.fromkeys(name for part in parts for name in part))
    runs = {model.source: run for model in models if (run := _run_of(folder, model.source))}
    return Evaluation(folder, metrics, models, file_labels(names), rows, n_answers, shown, coloured, runs)


def _fitting(rows: list[dict], places: dict[str, dict[str, int]]) -> int:
    """How many prompts of each file fit on a page; one does in any case. `places`: number of each id by file."""
    counts, characters = ([0] * max(map(len, places.values()), default=0) for _ in range(2))
    for row in rows:
        place = places[row["file"]][row["id"]]
        counts[place] += 1
        characters[place] += len(row["answer"])
    totals = list(zip(accumulate(counts), accumulate(characters), strict=True))
    return max(1, sum(n <= MOST_ANSWERS and size <= MOST_CHARACTERS for n, size in totals))


def _run_of(folder: Path, source: str) -> RunFiles | None:
    """The training run that made the model: runs/x/student lies in runs/x."""
    for base in (Path(), folder.resolve().parent.parent):
        run = (base / Path(source).expanduser()).parent
        if (run / "metrics.csv").is_file():
            return RunFiles.read(run)
    return None


def _json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error


def _lines(file: Path, wanted: Mapping[str, type]) -> Iterator[dict]:
    try:
        with open(file, encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                row = json.loads(line, parse_constant=lambda _: None)
                for key, kind in wanted.items():
                    if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                        raise DataError(f"{file}, line {number}: {key} is missing; wanted {', '.join(wanted)}")
                yield row
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {number}: not JSON ({error.msg}); wanted a JSON object a line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _check_model(row: dict, metrics: dict, where: str) -> None:
    if row["model"] not in metrics["models"]:
        raise DataError(f"{where}: model {row['model']!r} is not in metrics.json")


def _check_answer(row: dict, where: str) -> None:
    for key in ("n_tokens", "reverse_kl", "rouge_l", "exact_match"):
        if not _number(row.get(key)):
            raise DataError(f"{where}: {key}={row[key]!r}; wanted a number or null")
    if not _texts(row.get("references") or []):
        raise DataError(f"{where}: references={row['references']!r}; wanted a list of texts")


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)


def _check(metrics: Any, file: Path) -> None:
    """The shape of metrics.json as far as the page leans on it. Raises DataError with the place."""

    def wrong(where: str, wanted: str) -> DataError:
        return DataError(f"{file}: {where or 'the whole'}: wanted {wanted}, as evaluate.py writes it")

    def mapping(value: Any, where: str) -> dict:
        if not isinstance(value, dict):
            raise wrong(where, "a JSON object")
        return value

    def spread(value: Any, where: str) -> None:
        if not all(key in mapping(value, where) and _number(value[key]) for key in SPREAD):
            raise wrong(where, f"{', '.join(SPREAD)}, each a number or null")

    def curves(value: Any, where: str, keys: tuple[str, ...]) -> None:
        lists = [mapping(value, where).get(key) for key in keys]
        if not all(isinstance(each, list) and all(map(_number, each)) for each in lists):
            raise wrong(where, f"{', '.join(keys)}, each a list of numbers or null")
        if len({len(each) for each in lists}) > 1:
            raise wrong(where, f"{', '.join(keys)} of one length")

    def each_model(part: Any, where: str) -> Iterator[tuple[Any, str]]:
        for name, sources in mapping(part, where).items():
            for source, entry in mapping(sources, f"{where}.{name}").items():
                if source not in models:
                    raise wrong(f"{where}.{name}", f"models that models lists, not {source!r}")
                yield entry, f"{where}.{name}.{source}"

    models = mapping(mapping(metrics, "").get("models"), "models")
    if not models:
        raise wrong("models", "at least one model")
    for source, model in models.items():
        if not isinstance(mapping(model, f"models.{source}").get("label"), str) or "role" not in model:
            raise wrong(f"models.{source}", "label and role")
    for key, figure in mapping(metrics.get("figures") or {}, "figures").items():
        kinds = {"key": str, "name": str, "digits": int, "better": int, "heading": str}
        given = mapping(figure, f"figures.{key}")
        if given.keys() != kinds.keys() or not all(type(given[name]) is kind for name, kind in kinds.items()):
            raise wrong(f"figures.{key}", ", ".join(kinds))
    for decoding, files in mapping(metrics.get("answers"), "answers").items():
        for entry, where in each_model(files, f"answers.{decoding}"):
            for name, value in mapping(mapping(entry, where).get("figures"), f"{where}.figures").items():
                spread(value, f"{where}.figures.{name}")
            for name, figures in mapping(entry.get("by_length", {}), f"{where}.by_length").items():
                for figure, value in mapping(figures, f"{where}.by_length.{name}").items():
                    spread(value, f"{where}.by_length.{name}.{figure}")
    for decoding, files in mapping(metrics.get("judge") or {}, "judge").items():
        for counts, where in each_model(files, f"judge.{decoding}"):
            if "items" not in mapping(counts, where) or not all(map(_number, counts.values())):
                raise wrong(where, "counts of answers, items among them")
    for entry, where in each_model(metrics.get("reference_loss") or {}, "reference_loss"):
        spread(entry, where)
    for entry, where in each_model(metrics.get("position") or {}, "position"):
        for kind, value in mapping(entry, where).items():
            curves(value, f"{where}.{kind}", ("mean", "alive"))
    for entry, where in each_model(metrics.get("exposure") or {}, "exposure"):
        curves(entry, where, ("excess", "low", "high"))
        if not _number(entry.get("first_token")):
            raise wrong(f"{where}.first_token", "a number or null")
        for side in ("student", "teacher"):
            curves(entry.get(side), f"{where}.{side}", ("mean", "alive"))
    for entry, where in each_model(metrics.get("calibration") or {}, "calibration"):
        bins = mapping(entry, where).get("bins")
        if not all(_number(entry.get(key)) for key in ("ece", "accuracy")) or not isinstance(bins, list):
            raise wrong(where, "ece, accuracy and bins")
        for bin_ in bins:
            if not {"low", "high", "count", "confidence", "accuracy"} <= mapping(bin_, f"{where}.bins").keys():
                raise wrong(f"{where}.bins", "low, high, count, confidence and accuracy of each")


def _number(value: Any) -> bool:
    return value is None or is_finite(value)
