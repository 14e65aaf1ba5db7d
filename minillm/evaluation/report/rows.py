"""The long table, a row for each figure: what table.csv holds, and W&B's table of a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from minillm.evaluation.report.published import SETS, row_of, set_of
from minillm.evaluation.report.source import SPREAD, Evaluation, Model
from minillm.evaluation.report.tables import JUDGED, last_excess, spread_of

COLUMNS = ["decoding", "model", "source", "file", "figure", *SPREAD]


def table_rows(evaluation: Evaluation) -> tuple[list[str], list[list]]:
    """Columns and rows. What has no decoding (calibration, exposure bias) has an empty one; `file` is the task of a
    calibration; the decoding of the paper's values is `published`."""
    rows = []
    for decoding in evaluation.decodings:
        for model in evaluation.models:
            for file in evaluation.files:
                head = [decoding, model.label, model.source, file]
                rows += [[*head, *each] for each in _of_answers(evaluation, decoding, model, file)]
    for model in evaluation.models:
        for name, each in _of_model(evaluation, model):
            rows.append(["", model.label, model.source, name, *each])
    for model in evaluation.models:
        if published := row_of(model):
            name = f"{published.family} {published.size}, {published.method}"
            values = dict(zip(SETS, published.values, strict=True))
            rows += [
                ["published", name, model.source, file, "rouge_l", values[own], None, None, None, None]
                for file in evaluation.files
                if (own := set_of(file))
            ]
    return COLUMNS, rows


def _of_answers(evaluation: Evaluation, decoding: str, model: Model, file: str) -> Iterator[list]:
    """Figures, figures by length of the reference (rouge_l of 0-5 tokens: `rouge_l@0-5`), and the judge's counts."""
    for key in evaluation.figures:
        cell = spread_of(evaluation, decoding, file, model.source, key)
        if cell is not None:
            yield [key, *(cell[key] for key in SPREAD)]
    entry = evaluation.metrics["answers"][decoding].get(file, {}).get(model.source, {})
    for name, figures in entry.get("by_length", {}).items():
        for figure, cell in figures.items():
            yield [f"{figure}@{name}", *(cell[key] for key in SPREAD)]
    counts = (evaluation.metrics.get("judge") or {}).get(decoding, {}).get(file, {}).get(model.source, {})
    for name in JUDGED:
        if name in counts:
            yield [f"judge_{name}", counts[name], None, None, None, counts["items"]]


def _of_model(evaluation: Evaluation, model: Model) -> Iterator[tuple[str, list]]:
    """Calibration by task; by file ExAccErr at the last length with a value and the KL of the first token."""
    for task, by_model in (evaluation.metrics.get("calibration") or {}).items():
        if entry := by_model.get(model.source):
            for figure in ("ece", "accuracy"):
                low, high = entry.get(f"{figure}_interval") or (None, None)
                yield task, [figure, entry[figure], None, low, high, entry.get("n")]
    for file, by_model in (evaluation.metrics.get("exposure") or {}).items():
        if entry := by_model.get(model.source):
            if found := last_excess(entry):
                length, value, low, high = found
                yield file, [f"exposure_bias@{length}", value, None, low, high, None]
            if entry.get("first_token") is not None:
                yield file, ["first_token_kl", entry["first_token"], None, None, None, None]


def to_csv(columns: list[str], rows: list[list]) -> str:
    """None as an empty field."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()
