"""The sections of an evaluation's page, each from its part of metrics.json; their titles are in page.html."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product, repeat
from typing import NamedTuple

from minillm.evaluation.report.plots import Panel, Series, dot_panel, line_panel
from minillm.evaluation.report.source import Evaluation, Model
from minillm.evaluation.report.tables import Table, figure_table
from minillm.evaluation.rows import JUDGED

_DISTINCT = [f"distinct_{n}" for n in range(1, 5)]


class Section(NamedTuple):
    """`groups`: plots by heading ("" has none); `lines` of text and `table` stand below them."""

    key: str
    groups: dict[str, list[Panel]]
    table: Table | None = None
    lines: Sequence[str] = ()


def sections_of(evaluation: Evaluation) -> list[Section]:
    """All that has a plot or a table."""
    made = (
        Section("position", _positions(evaluation)),
        _exposure(evaluation),
        _calibration(evaluation),
        Section("length", _lengths(evaluation)),
        Section("diversity", _diversity(evaluation)),
        Section("judge", {}, figure_table(evaluation, {f"judge_{key}": name for key, name in JUDGED.items()})),
    )
    return [section for section in made if any(section.groups.values()) or section.table]


def overview(evaluation: Evaluation, key: str) -> list[Panel]:
    """One plot a file: each model's mean with its interval in each decoding."""
    panels, figure = [], evaluation.figures[key]
    decodings = evaluation.decodings[: 1 if key == "reference_loss" else None]
    for file, short in evaluation.files.items():
        series = []
        for model in evaluation.models:
            cells = {decoding: evaluation.cells(decoding, file, model.source).get(key) for decoding in decodings}
            series += _means(model, cells, "mean", "low", "high")
        panels += dot_panel((key, short, figure.name), series, figure.digits)
    return panels


def _means(model: Model, cells: dict[str, dict | None], *values: str, at: str = "") -> list[Series]:
    """A point for each cell by its place, or `at` one of its values; nothing without cells. `values`: y, low, high."""
    there = {place: cell for place, cell in cells.items() if cell}
    points = [(place, *(cell[name] if name else None for name in values)) for place, cell in there.items()]
    return [Series(model.label, model.style, points, [cell[at] for cell in there.values() if at])] if points else []


def _curve(model: Model, mean: list, low: list | None = None, high: list | None = None) -> Series:
    """Over 1, 2, ...; as long as the shortest of the lists, which a damaged file may have of several lengths."""
    columns = (mean, repeat(None) if low is None else low, repeat(None) if high is None else high)
    return Series(model.label, model.style, [(x, *values) for x, values in enumerate(zip(*columns, strict=False), 1)])


def _positions(evaluation: Evaluation) -> dict[str, list[Panel]]:
    groups = defaultdict(list)
    kinds = {"reverse_kl": "Reverse, KL[q ‖ p]", "forward_kl": "Forward, KL[p ‖ q]"}
    for (kind, heading), (file, short) in product(kinds.items(), evaluation.files.items()):
        found = [(model, entry[kind]) for model, entry in evaluation.entries("position", file) if kind in entry]
        means, alive = ([_curve(model, each[name]) for model, each in found] for name in ("mean", "alive"))
        name = (f"position_{kind}", short, heading)
        groups[heading] += line_panel(name, "position in the answer", means, y="nats", below=alive)
    return groups


def _exposure(evaluation: Evaluation) -> Section:
    panels = []
    for file, short in evaluation.files.items():
        found = evaluation.entries("exposure", file)
        excess = [_curve(model, each["excess"], each["low"], each["high"]) for model, each in found]
        alive = [_curve(model, each["student"]["alive"]) for model, each in found]
        for model, each in found[:1]:  # the teacher's answers are the same for every student
            teacher = replace(model, label="the teacher’s answers", style=0)
            alive.append(_curve(teacher, each["teacher"]["alive"]))
        name = ("exposure", short, "exposure bias")
        panels += line_panel(name, "length", excess, y="ExAccErr, %", below=alive)
    names = {"first_token_kl": "first token’s KL, nats", "exposure_bias": "ExAccErr, %, at the last length"}
    return Section("exposure", {"": panels}, figure_table(evaluation, names))


def _calibration(evaluation: Evaluation) -> Section:
    panels = []
    for task in evaluation.metrics.get("calibration", {}):
        series, counts = [], []
        for model, entry in evaluation.entries("calibration", task):
            bins = {f"{each['low']:.1f}–{each['high']:.1f}": each for each in entry["bins"] if each["count"]}
            series += _means(model, bins, "accuracy", "", "", at="confidence")
            counts += _means(model, bins, "count", "", "", at="confidence")
        look = dict(y="accuracy", below=counts, counted="records", marked=True, diagonal=True)
        panels += line_panel(("reliability", task, "accuracy by confidence"), "confidence", series, **look)
    names = {"ece": "ECE", "accuracy": "accuracy", "dropped": "prompts left out: too long"}
    return Section("calibration", {"": panels}, figure_table(evaluation, names))


def _lengths(evaluation: Evaluation) -> dict[str, list[Panel]]:
    groups = defaultdict(list)
    places = product(("rouge_l", "exact_match"), evaluation.decodings, evaluation.files.items())
    for key, decoding, (file, short) in places:
        figure, series, counts = evaluation.figures[key], [], []
        for model in evaluation.models:
            cells = evaluation.cells(decoding, file, model.source)
            bins = {name.partition("@")[2]: cell for name, cell in cells.items() if name.startswith(f"{key}@")}
            series += _means(model, bins, "mean", "low", "high")
            counts += _means(model, bins, "n", "", "")
        heading = f"{figure.name} by length of the reference, decoding {decoding}"
        name = (f"{key}_by_length-{decoding}", short, heading)
        groups[heading] += line_panel(
            name, "tokens of the reference", series, y=figure.name, below=counts, counted="prompts", marked=True,
            digits=figure.digits,
        )  # fmt: skip
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
        groups[heading] += line_panel((f"distinct-{decoding}", short, heading), "n", series, marked=True)
    groups["Loss on references, nats a token"] = overview(evaluation, "reference_loss")
    return groups
