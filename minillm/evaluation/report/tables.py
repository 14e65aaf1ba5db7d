"""What the page shows as tables, the paper's values (published.yaml), and table.csv."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from minillm.evaluation.report.source import Evaluation, Model
from minillm.evaluation.rows import figure_rows

_PAPER = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
SETS: dict[str, str] = _PAPER["sets"]
# Words of a label that say that something of the method was left out or done otherwise: the paper has no row for it.
_OTHERWISE = {"nopt", "no", "without", "wo", "ablation", "lora"}


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
        return f"{value:,.{digits}f}"
    return "–" if None in value else f"[{value[0]:.{digits}f}, {value[1]:.{digits}f}]"


def cell_text(cell: dict[str, Any], digits: int) -> str:
    """The mean, with its interval where there is one."""
    return f"{text_of(cell['mean'], digits)} {text_of((cell.get('low'), cell.get('high')), digits)}".removesuffix(" –")


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


def figure_table(evaluation: Evaluation, names: dict[str, str]) -> Table | None:
    """A row for each place (decoding, file or task) and model, a column for each of the figures `names`, with intervals
    where there are any; None without a row. The length of `exposure_bias@35` stands behind its value."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in figure_rows(evaluation.metrics):
        key, _, length = row["figure"].partition("@")
        if key in names:
            text = cell_text(row, 0 if isinstance(row["mean"], int) else 3) + (f" at {length}" if length else "")
            place = (row.get("decoding", ""), evaluation.files.get(row["file"], row["file"]), row["model"])
            cells.setdefault(place, {})[key] = text
    first = 0 if any(decoding for decoding, _, _ in cells) else 1  # a column of decodings where there are any
    columns = ["decoding", "data", "model", *names.values()][first:]
    rows = [[*place, *(found.get(key, "–") for key in names)][first:] for place, found in cells.items()]
    return Table(columns, rows, heads=3 - first) if rows else None


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
    """A row for each figure, see `figure_rows`; the decoding of the paper's values is `published`."""
    rows = figure_rows(evaluation.metrics)
    for model in evaluation.models:
        if paper := row_of(model):
            place = {"decoding": "published", "model": paper.name, "source": model.source, "figure": "rouge_l"}
            found = {file: paper.values[own] for file in evaluation.files if (own := set_of(file))}
            rows += [place | {"file": file, "mean": value} for file, value in found.items()]
    columns = ("decoding", "model", "source", "file", "figure", "mean", "deviation", "low", "high", "n")
    return rows_table(rows, columns)
