"""The sections of a page, each from its part of metrics.json or metrics.csv; their titles are in page.html."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from minillm.common.numbers import is_finite
from minillm.common.read import RunFiles
from minillm.evaluation.metrics.figures import FIGURES
from minillm.evaluation.report.plots import Panel, Series, bin_panel, dot_panel, line_panel, reliability_panel
from minillm.evaluation.report.source import LARGEST, Evaluation, Model
from minillm.evaluation.report.tables import Table, judge_table, last_excess, rows_table, text_of

_VALIDATED = ("rouge_l", "reverse_kl", "loss", "exact_match", "length", "distinct_4", "entropy", "overlap_mass")
NAMES = {figure.key: figure.name for figure in FIGURES} | {"loss": "Loss on references, nats a token"}
CURVES = {f"val/{key}": f"Validation: {NAMES[key]}" for key in _VALIDATED} | {
    "train/loss": "Training: loss",
    "start/loss": "Supervised start: loss",
    "rollout/reverse_kl_sampled": "Rollouts: reverse KL, sampled",
    "rollout/length": "Rollouts: length, tokens",
    "optim/grad_norm": "Gradient norm",
    "optim/learning_rate": "Learning rate",
}
_COUNTS = ("tokens", "uniform")  # of a validation; not its figures
_STAGES = {"_raw": "as given", "_start": "after the start", "": "at the end"}
_DISTINCT = [f"distinct_{n}" for n in range(1, 5)]
_SHOWN = ("mean", "low", "high", "n")


class Section(NamedTuple):
    """`groups`: plots by heading ("" has none); `table` stands below them."""

    key: str
    groups: dict[str, list[Panel]]
    table: Table | None = None


def sections_of(evaluation: Evaluation) -> list[Section]:
    """All that has a plot or a table."""
    runs = {m.label: (m.style, evaluation.runs[m.source]) for m in evaluation.models if m.source in evaluation.runs}
    made = (
        Section("curves", {"": learning_curves(runs, list(CURVES)[: len(_VALIDATED)])}),
        Section("position", _positions(evaluation)),
        _exposure(evaluation),
        _calibration(evaluation),
        Section("length", _lengths(evaluation)),
        Section("diversity", _diversity(evaluation)),
        Section("judge", {}, judge_table(evaluation)),
    )
    return [section for section in made if any(section.groups.values()) or section.table]


def learning_curves(runs: dict[str, tuple[int, RunFiles]], figures: Sequence[str]) -> list[Panel]:
    """One plot a figure that any run has; `runs`: style and run by name."""
    panels = []
    for figure in figures:
        series = []
        for name, (style, run) in runs.items():
            points = [(x, y) for x, y in run.curve(figure) if abs(x) <= LARGEST and abs(y) <= LARGEST]  # not NaN
            series += [Series(name, style, *zip(*points, strict=True))] if points else []
        heading = CURVES.get(figure, figure.replace("val/", "Validation: "))
        panels += line_panel(("curve", heading, ""), "optimizer step", series, points=figure.startswith("val/"))
    return panels


def training_sections(run: RunFiles) -> list[Section]:
    """The validation at each stage, and all curves."""
    columns = rows_table(run.rows).columns
    validated = [name.removeprefix("val/") for name in columns if name.startswith("val/")]
    own = [key for key in validated if key not in (*NAMES, *_COUNTS)]
    names = NAMES | {key: key for key in own}
    stages = [stage for stage in _STAGES if any(f"val/{key}{stage}" in run.figures for key in names)]
    rows = []
    for key, name in names.items():
        found = [run.figures.get(f"val/{key}{stage}") for stage in stages]
        if any(value is not None for value in found):
            others = (run.figures.get(f"best/{key}"), run.figures.get(f"val/teacher_{key}"))
            rows.append([name, *map(number_of, (*found, *others))])
    table = Table(["figure", *(_STAGES[stage] for stage in stages), "best", "teacher"], rows)
    curves = learning_curves({run.name: (1, run)}, [*CURVES, *(f"val/{key}" for key in own)])
    return [*([Section("figures", {}, table)] if rows else []), Section("curves", {"": curves})]


def number_of(value: object) -> str:
    return f"{value:.4g}" if is_finite(value) else "–"


def overview(evaluation: Evaluation, key: str) -> list[Panel]:
    """One plot a file: each model's mean with its interval in each decoding."""
    panels, figure = [], evaluation.figures[key]
    decodings = evaluation.decodings[: 1 if key == "reference_loss" else None]
    for file, short in evaluation.files.items():
        series = []
        for model in evaluation.models:
            cells = {decoding: evaluation.cells(decoding, file, model.source).get(key) for decoding in decodings}
            series += _means(model, {decoding: cell for decoding, cell in cells.items() if cell})
        panels += dot_panel((key, short, figure.name), series, figure.digits)
    return panels


def _means(model: Model, cells: dict[str, dict]) -> list[Series]:
    """A point for each cell by its place; nothing without cells."""
    values = ([cell[name] for cell in cells.values()] for name in _SHOWN)
    return [Series(model.label, model.style, list(cells), *values)] if cells else []


def _positions(evaluation: Evaluation) -> dict[str, list[Panel]]:
    groups = defaultdict(list)
    kinds = {"reverse_kl": "Reverse, KL[q ‖ p]", "forward_kl": "Forward, KL[p ‖ q]"}
    for (kind, heading), (file, short) in product(kinds.items(), evaluation.files.items()):
        found = [(model, entry[kind]) for model, entry in evaluation.entries("position", file) if kind in entry]
        means = [_curve(model, each["mean"]) for model, each in found]
        alive = [_curve(model, each["alive"]) for model, each in found]
        name = (f"position_{kind}", short, heading)
        groups[heading] += line_panel(name, "position in the answer", means, y="nats", alive=alive)
    return groups


def _exposure(evaluation: Evaluation) -> Section:
    panels, rows = [], []
    for file, short in evaluation.files.items():
        found = evaluation.entries("exposure", file)
        for model, each in found:
            last = last_excess(each)
            texts = [text_of(last["mean"], 1), text_of((last["low"], last["high"]), 1), str(last["length"] or "–")]
            rows.append([short, model.label, text_of(each.get("first_token"), 3), *texts])
        excess = [_curve(model, each["excess"], each["low"], each["high"]) for model, each in found]
        alive = [_curve(model, each["student"]["alive"]) for model, each in found]
        for _, each in found[:1]:  # the teacher's answers are the same for every student
            counts = each["teacher"]["alive"]
            alive.append(Series("the teacher’s answers", 0, range(1, len(counts) + 1), counts))
        name = ("exposure", short, "exposure bias")
        panels += line_panel(name, "length", excess, y="ExAccErr, %", alive=alive)
    columns = ["data set", "model", "first token’s KL, nats", "ExAccErr, %", "95%", "at length"]
    return Section("exposure", {"": panels}, Table(columns, rows, heads=2) if rows else None)


def _calibration(evaluation: Evaluation) -> Section:
    groups, rows = {}, []
    for task in evaluation.metrics.get("calibration", {}):
        groups[task] = []
        for model, entry in evaluation.entries("calibration", task):
            shown = Series(model.label, model.style, [], [each["accuracy"] for each in entry["bins"]])
            name = (f"reliability-{task}", model.label, task)
            groups[task] += reliability_panel(name, entry["bins"], shown, f"ECE {text_of(entry['ece'], 3)}")
            figures = [text_of(entry.get(key), 3) for key in ("ece", "ece_interval", "accuracy", "accuracy_interval")]
            counts = [str(entry.get(key, "–")) for key in ("n", "dropped")]
            rows.append([task, model.label, *figures, *counts, ", ".join(entry.get("words", []))])
    columns = ["task", "model", "ECE", "95%", "accuracy", "95%", "records", "too long", "label words"]
    return Section("calibration", groups, Table(columns, rows, heads=2) if rows else None)


def _lengths(evaluation: Evaluation) -> dict[str, list[Panel]]:
    groups = defaultdict(list)
    places = product(("rouge_l", "exact_match"), evaluation.decodings, evaluation.files.items())
    for key, decoding, (file, short) in places:
        figure, series = evaluation.figures[key], []
        for model in evaluation.models:
            cells = evaluation.cells(decoding, file, model.source)
            bins = [name for name in cells if name.startswith(f"{key}@")]
            series += _means(model, {name.partition("@")[2]: cells[name] for name in bins})
        heading = f"{figure.name} by length of the reference, decoding {decoding}"
        name = (f"{key}_by_length-{decoding}", short, heading)
        groups[heading] += bin_panel(name, figure.name, series, figure.digits)
    groups["Length of the answers, tokens"] = overview(evaluation, "length")
    groups["Cut off at the limit, share"] = overview(evaluation, "truncated")
    return groups


def _diversity(evaluation: Evaluation) -> dict[str, list[Panel]]:
    groups = defaultdict(list)
    for decoding, (file, short) in product(evaluation.decodings, evaluation.files.items()):
        series = []
        for model in evaluation.models:
            cells = evaluation.cells(decoding, file, model.source)
            means = [cells[key]["mean"] if key in cells else None for key in _DISTINCT]
            series += [_curve(model, means)] if any(mean is not None for mean in means) else []
        heading = f"Distinct-n, decoding {decoding}"
        groups[heading] += line_panel((f"distinct-{decoding}", short, heading), "n", series, points=True)
    groups["Loss on references, nats a token"] = overview(evaluation, "reference_loss")
    return groups


def _curve(model: Model, mean: list, low: list | None = None, high: list | None = None) -> Series:
    return Series(model.label, model.style, range(1, len(mean) + 1), mean, low, high)
