"""Tables of an evaluation: results for the page, the paper's values (published.yaml), table.csv, judged answers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from minillm.evaluation.report.source import Evaluation, Model

_PAPER = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
SETS: dict[str, str] = _PAPER["sets"]
# Words of a label that say that something of the method was left out or done otherwise: the paper has no row for it.
_OTHERWISE = {"nopt", "no", "without", "wo", "ablation", "lora"}
# Counts of a judge, by their names in metrics.json.
JUDGED = {
    "items": "answers", "rated": "rated", "malformed": "malformed", "failed": "failed",
    "malformed_replies": "replies without scores",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The first `heads` columns name the row."""

    columns: list[str]
    rows: list[list[Any]]
    heads: int = 1

    def to_csv(self) -> str:
        """None as an empty field."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def rows_table(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> Table:
    """Columns by name, further ones in the order in which they come."""
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    return Table(names, [[row.get(name) for name in names] for row in rows])


def text_of(value: float | Sequence[float | None] | None, digits: int) -> str:
    """A number, or an interval of two; a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return f"{value:.{digits}f}"
    return "–" if None in value else f"[{value[0]:.{digits}f}, {value[1]:.{digits}f}]"


def last_excess(exposure: dict) -> dict[str, Any]:
    """ExAccErr at the last length that has a value: length, mean, low, high; all None where no length has one."""
    at = max((at for at, value in enumerate(exposure["excess"]) if value is not None), default=None)
    if at is None:
        return dict.fromkeys(("length", "mean", "low", "high"))
    return {"length": at + 1, "mean": exposure["excess"][at], "low": exposure["low"][at], "high": exposure["high"][at]}


class Row(NamedTuple):
    """`values` by the names of SETS."""

    network: str
    method: str
    values: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.network}, {self.method}"


ROWS = tuple(Row(each[0], each[1], dict(zip(SETS, each[2:], strict=True))) for each in _PAPER["rows"])


def set_of(file: str) -> str | None:
    """The paper's test set that a data file's name speaks of, or None."""
    name = Path(file).stem.lower()
    return next((each for each, pattern in SETS.items() if re.search(pattern, name)), None)


def row_of(model: Model) -> Row | None:
    """The paper's row for a network of the same type and size (1%), made by the method that the label names; None for
    an ablation of it, such as minillm_nopt."""
    words = ["teacher"] if model.role == "teacher" else re.split(r"[^a-z0-9]+", model.label.lower())
    methods = {row.method.lower() for row in ROWS}
    method = next((word for word in reversed(words) if word in methods), None)
    if not model.parameters or method is None or _OTHERWISE.intersection(words):
        return None
    try:
        config = Path(model.source).expanduser() / "config.json"
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # the report shows what was measured all the same
        return None
    for row in ROWS:
        network, millions = _PAPER["networks"][row.network]
        if (network, method) == (kind, row.method.lower()) and abs(model.parameters / 1e6 / millions - 1) < 0.01:
            return row
    return None


def judge_table(evaluation: Evaluation) -> Table | None:
    """By decoding and model, all data sets together."""
    rows = []
    for (decoding, files), model in product(evaluation.metrics.get("judge", {}).items(), evaluation.models):
        if found := [by_model[model.source] for by_model in files.values() if model.source in by_model]:
            totals = [sum(counts.get(name) or 0 for counts in found) for name in JUDGED]
            rows.append([decoding, model.label, *(f"{total:,}" for total in totals)])
    return Table(["decoding", "model", *JUDGED.values()], rows, heads=2) if rows else None


def results(evaluation: Evaluation) -> dict:
    """For page.js: cells[decoding][model][file][figure] = {mean, deviation, low, high, n}, and the paper's rows where a
    model is comparable. Figures that nobody has are left out."""
    files, models = evaluation.files, evaluation.models
    cells = [
        [[evaluation.cells(decoding, file, model.source) for file in files] for model in models]
        for decoding in evaluation.decodings
    ]
    there = {key for by_model in cells for by_file in by_model for figures in by_file for key in figures}
    papers = [row_of(model) for model in models]
    return {
        "figures": [figure.facts() for figure in evaluation.figures.values() if figure.key in there],
        "decodings": list(evaluation.decodings),
        "files": list(files.values()),
        "models": [{"label": model.label, "role": model.role} for model in models],
        "cells": cells,
        "published": [
            row and {"name": row.name, "values": [row.values.get(set_of(file)) for file in files]} for row in papers
        ],
    }


def published_table(files: dict[str, str]) -> Table:
    """The paper's rows; the last says which of our files stands beside its test sets."""
    ours = [", ".join(short for file, short in files.items() if set_of(file) == name) or "–" for name in SETS]
    rows = [[row.network, row.method, *(f"{value:.1f}" for value in row.values.values())] for row in ROWS]
    return Table(["model", "method", *SETS], [*rows, ["", "our file", *ours]], heads=2)


def long_table(evaluation: Evaluation) -> Table:
    """A row for each figure. What has no decoding (calibration, exposure bias) has an empty one; `file` is the task of
    a calibration; the decoding of the paper's values is `published`."""
    rows = []
    for decoding, model, file in product(evaluation.decodings, evaluation.models, evaluation.files):
        place = {"decoding": decoding, "model": model.label, "source": model.source, "file": file}
        cells = evaluation.cells(decoding, file, model.source)
        rows += [place | {"figure": key} | cell for key, cell in cells.items()]
        counts = evaluation.metrics.get("judge", {}).get(decoding, {}).get(file, {}).get(model.source, {})
        judged = [name for name in JUDGED if name in counts]
        rows += [place | {"figure": f"judge_{name}", "mean": counts[name], "n": counts.get("items")} for name in judged]
    for task in evaluation.metrics.get("calibration", {}):
        for (model, entry), figure in product(evaluation.entries("calibration", task), ("ece", "accuracy")):
            place = {"model": model.label, "source": model.source, "file": task, "figure": figure}
            low, high = entry.get(f"{figure}_interval") or (None, None)
            rows.append(place | {"mean": entry[figure], "low": low, "high": high, "n": entry.get("n")})
    for file in evaluation.metrics.get("exposure", {}):
        for model, entry in evaluation.entries("exposure", file):
            place = {"model": model.label, "source": model.source, "file": file}
            last = last_excess(entry)
            if length := last.pop("length"):
                rows.append(place | {"figure": f"exposure_bias@{length}"} | last)
            if entry.get("first_token") is not None:
                rows.append(place | {"figure": "first_token_kl", "mean": entry["first_token"]})
    for model in evaluation.models:
        if paper := row_of(model):
            place = {"decoding": "published", "model": paper.name, "source": model.source, "figure": "rouge_l"}
            found = {file: paper.values[own] for file in evaluation.files if (own := set_of(file))}
            rows += [place | {"file": file, "mean": value} for file, value in found.items()]
    columns = ("decoding", "model", "source", "file", "figure", "mean", "deviation", "low", "high", "n")
    return rows_table(rows, columns)
