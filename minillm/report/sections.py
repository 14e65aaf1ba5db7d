"""The sections of an evaluation's page, each from its part of metrics.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minillm.report.panels import CURVES, Section, learning_curves, make_panel, overview, text_of
from minillm.report.plots import Series, bins, lines, reliability, stacked
from minillm.report.source import Evaluation, Model
from minillm.report.tables import spread_of


def sections_of(evaluation: Evaluation, folder: Path) -> list[Section]:
    """All that has a plot. PNGs go to `folder`."""
    made = (make(evaluation, folder) for make in (_curves, _positions, _exposure, _calibration, _lengths, _diversity))
    return [section for section in made if section.panels]


def _curves(evaluation: Evaluation, folder: Path) -> Section:
    runs = {m.label: (m.style, evaluation.runs[m.source]) for m in evaluation.models if m.source in evaluation.runs}
    text = "From the training runs that the models lie in, on the validation prompts of each run."
    return Section("curves", "Learning curves", text, {"": learning_curves(runs, folder, list(CURVES)[:6])})


def _positions(evaluation: Evaluation, folder: Path) -> Section:
    groups = {}
    for kind, heading in (("reverse_kl", "Reverse, KL[q ‖ p]"), ("forward_kl", "Forward, KL[p ‖ q]")):
        groups[heading] = []
        for file, short in evaluation.files.items():
            found = [(model, entry[kind]) for model, entry in _entries(evaluation, "position", file) if kind in entry]
            means = [_curve(model, each["mean"]) for model, each in found]
            alive = [_curve(model, each["alive"]) for model, each in found]
            if any(value is not None for each in means for value in each.y):
                draw = _over_alive(means, alive, "nats", "position in the answer")
                curves = ("position", means)
                panel = make_panel(folder, f"position_{kind}", short, draw, curves=curves, heading=heading)
                groups[heading].append(panel)
    text = (
        "Distance to the teacher at each token of the student’s own answers (q student, p teacher), over the whole "
        "vocabulary; below it, how many answers are that long."
    )
    return Section("position", "KL by position", text, groups)


def _exposure(evaluation: Evaluation, folder: Path) -> Section:
    panels = []
    for file, short in evaluation.files.items():
        found = _entries(evaluation, "exposure", file)
        excess = [_curve(model, each["excess"], each["low"], each["high"]) for model, each in found]
        if any(value is not None for each in excess for value in each.y):
            alive = [_curve(model, each["student"]["alive"]) for model, each in found]
            counts = found[0][1]["teacher"]["alive"]  # the teacher's answers are the same for every student
            alive.append(Series("the teacher’s answers", 0, range(1, len(counts) + 1), counts))
            draw = _over_alive(excess, alive, "ExAccErr, %", "length l")
            panels.append(
                make_panel(folder, "exposure", short, draw, curves=("length", excess), heading="exposure bias")
            )
    text = (
        "ExAccErr(l): by how many percent more the student errs on its own prefixes than on the teacher’s, up to "
        "length l, with its 95% interval; below it, how many answers are still alive, the teacher’s dashed. 0 is no "
        "exposure bias."
    )
    return Section("exposure", "Exposure bias", text, {"": panels})


def _calibration(evaluation: Evaluation, folder: Path) -> Section:
    groups, rows = {}, []
    for task in evaluation.metrics.get("calibration") or {}:
        groups[task] = []
        for model, entry in _entries(evaluation, "calibration", task):
            in_bins = [
                [
                    f"{b['low']:.1f}–{b['high']:.1f}",
                    str(b["count"]),
                    *(text_of(b[k], 3) for k in ("confidence", "accuracy")),
                ]
                for b in entry["bins"]
            ]

            def draw(canvas, entry=entry, style=model.style) -> None:
                axes = canvas.subplots()
                reliability(axes, entry["bins"], style)
                text = f"ECE {text_of(entry['ece'], 3)}"
                axes.annotate(text, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=12)

            numbers = (["confidence", "records", "mean confidence", "accuracy"], in_bins)
            panel = make_panel(folder, f"reliability-{task}", model.label, draw, numbers, heading=task, height=3.6)
            groups[task].append(panel)
            figures = [text_of(entry.get(key), 3) for key in ("ece", "ece_interval", "accuracy", "accuracy_interval")]
            counts = [str(entry.get(key, "–")) for key in ("n", "dropped")]
            rows.append([task, model.label, *figures, *counts, ", ".join(map(str, entry.get("words", [])))])
    text = (
        "Zero-shot choice between label words. A calibrated model’s points lie on the diagonal; grey bars below are "
        "the share of records in each bin. ECE is the mean gap, weighted by records."
    )
    columns = ["task", "model", "ECE", "95%", "accuracy", "95%", "records", "too long", "label words"]
    return Section("calibration", "Calibration", text, groups, (columns, rows), legend=False)


def _lengths(evaluation: Evaluation, folder: Path) -> Section:
    heading = "Rouge-L by length of the reference"
    panels, decoding = [], evaluation.decodings[0] if evaluation.decodings else ""
    for file, short in evaluation.files.items():
        entries = evaluation.metrics["answers"].get(decoding, {}).get(file, {})
        found = [
            (model, entries[model.source]["by_length"])
            for model in evaluation.models
            if entries.get(model.source, {}).get("by_length")
        ]
        names = list(dict.fromkeys(name for _, each in found for name in each))
        series, rows, counts = [], [], dict.fromkeys(names, 0)
        for model, each in found:
            cells = [each.get(name, {}).get("rouge_l") or {} for name in names]
            values = ([cell.get(key) for cell in cells] for key in ("mean", "low", "high"))
            series.append(Series(model.label, model.style, range(len(names)), *values))
            for name, cell in zip(names, cells, strict=True):
                counts[name] = max(counts[name], cell.get("n") or 0)
                interval = text_of((cell.get("low"), cell.get("high")), 1)
                rows.append([model.label, name, text_of(cell.get("mean"), 1), interval, str(cell.get("n", 0))])
        if not any(value is not None for each in series for value in each.y):
            continue

        def draw(canvas, series=series, counts=counts) -> None:
            axes = canvas.subplots()
            bins(axes, [f"{name} tokens\nn = {count}" for name, count in counts.items()], series)
            axes.set_ylabel("Rouge-L")

        numbers = (["model", "tokens", "mean", "95%", "prompts"], rows)
        panels.append(make_panel(folder, "by_length", short, draw, numbers, heading=heading))
    groups = {
        heading: panels,
        "Length of the answers, tokens": overview(evaluation, folder, "length"),
        "Cut off at the limit, share": overview(evaluation, folder, "truncated"),
    }
    text = (
        "References are grouped by the tokens of the shortest one, in the model’s own tokens; an empty group has "
        "n = 0. Bars are 95% intervals."
    )
    return Section("length", "Length", text, groups)


def _diversity(evaluation: Evaluation, folder: Path) -> Section:
    panels, decoding = [], evaluation.decodings[0] if evaluation.decodings else ""
    for file, short in evaluation.files.items():
        series = []
        for model in evaluation.models:
            cells = [spread_of(evaluation, decoding, file, model.source, f"distinct_{n}") or {} for n in range(1, 5)]
            if any(cell.get("mean") is not None for cell in cells):
                series.append(Series(model.label, model.style, range(1, 5), [cell.get("mean") for cell in cells]))
        if not series:
            continue

        def draw(canvas, series=series) -> None:
            axes = canvas.subplots()
            lines(axes, series, points=True)
            axes.set_xticks(range(1, 5))
            axes.set_xlabel("n")

        panels.append(make_panel(folder, "distinct", short, draw, curves=("n", series), heading="distinct-n"))
    groups = {"Distinct-n": panels, "Loss on references, nats a token": overview(evaluation, folder, "reference_loss")}
    text = "Different n-grams as a share of all n-grams in the answers to a set, and the language-modelling loss."
    return Section("diversity", "Diversity and loss", text, groups)


def _entries(evaluation: Evaluation, part: str, name: str) -> list[tuple[Model, dict]]:
    """Of a file or task, in the order of the models."""
    entries = (evaluation.metrics.get(part) or {}).get(name, {})
    return [(model, entries[model.source]) for model in evaluation.models if model.source in entries]


def _curve(model: Model, mean: list, low: list | None = None, high: list | None = None) -> Series:
    return Series(model.label, model.style, range(1, len(mean) + 1), mean, low, high)


def _over_alive(above: list[Series], alive: list[Series], name: str, below: str) -> Callable:
    def draw(canvas) -> None:
        with stacked(canvas) as (large, small):
            lines(large, above)
            lines(small, alive)
            large.set_ylabel(name)
            small.set_ylabel("alive")
            small.set_xlabel(below)

    return draw
