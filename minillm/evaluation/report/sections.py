"""The sections of an evaluation's page, each from its part of metrics.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minillm.evaluation.report.panels import CURVES, Panel, Section, learning_curves, make_panel, overview, text_of
from minillm.evaluation.report.plots import Series, bins, lines, reliability, stacked
from minillm.evaluation.report.source import Evaluation, Model
from minillm.evaluation.report.tables import judge_table, last_excess, spread_of


def sections_of(evaluation: Evaluation, folder: Path) -> list[Section]:
    """All that has a plot or a table. PNGs go to `folder`."""
    makers = (_curves, _positions, _exposure, _calibration, _lengths, _diversity, _judge)
    return [section for make in makers if (section := make(evaluation, folder)).panels or section.table]


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
    panels, rows = [], []
    for file, short in evaluation.files.items():
        found = _entries(evaluation, "exposure", file)
        for model, each in found:
            length, value, low, high = last_excess(each) or ("–", None, None, None)
            last = [text_of(value, 1), text_of((low, high), 1), str(length)]
            rows.append([short, model.label, text_of(each.get("first_token"), 3), *last])
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
        "exposure bias. The first token’s KL[p ‖ q] is over the distributions right after the prompt, where both sides "
        "have the same prefix."
    )
    columns = ["data set", "model", "first token’s KL, nats", "ExAccErr, %", "95%", "at length"]
    return Section("exposure", "Exposure bias", text, {"": panels}, (columns, rows) if rows else None, heads=2)


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
    return Section("calibration", "Calibration", text, groups, (columns, rows) if rows else None, legend=False, heads=2)


def _lengths(evaluation: Evaluation, folder: Path) -> Section:
    groups = {}
    for figure in ("rouge_l", "exact_match"):
        for decoding in evaluation.decodings:
            heading = f"{evaluation.figures[figure].name} by length of the reference, decoding {decoding}"
            made = (_by_length(evaluation, folder, decoding, file, figure, heading) for file in evaluation.files)
            groups[heading] = [panel for panel in made if panel]
    groups["Length of the answers, tokens"] = overview(evaluation, folder, "length")
    groups["Cut off at the limit, share"] = overview(evaluation, folder, "truncated")
    text = (
        "References are grouped by the tokens of the shortest one, in the model’s own tokens; an empty group has "
        "n = 0. Bars are 95% intervals."
    )
    return Section("length", "Length", text, groups)


def _by_length(
    evaluation: Evaluation, folder: Path, decoding: str, file: str, figure: str, heading: str
) -> Panel | None:
    entries = evaluation.metrics["answers"].get(decoding, {}).get(file, {})
    found = [
        (model, entries[model.source]["by_length"])
        for model in evaluation.models
        if entries.get(model.source, {}).get("by_length")
    ]
    names = list(dict.fromkeys(name for _, each in found for name in each))
    series, rows, counts, digits = [], [], dict.fromkeys(names, 0), evaluation.figures[figure].digits
    for model, each in found:
        cells = [each.get(name, {}).get(figure) or {} for name in names]
        values = ([cell.get(key) for cell in cells] for key in ("mean", "low", "high"))
        series.append(Series(model.label, model.style, range(len(names)), *values))
        for name, cell in zip(names, cells, strict=True):
            counts[name] = max(counts[name], cell.get("n") or 0)
            interval = text_of((cell.get("low"), cell.get("high")), digits)
            rows.append([model.label, name, text_of(cell.get("mean"), digits), interval, str(cell.get("n", 0))])
    if not any(value is not None for each in series for value in each.y):
        return None

    def draw(canvas) -> None:
        axes = canvas.subplots()
        bins(axes, [f"{name} tokens\nn = {count}" for name, count in counts.items()], series)
        axes.set_ylabel(evaluation.figures[figure].name)

    numbers = (["model", "tokens", "mean", "95%", "prompts"], rows)
    kind = f"{figure}_by_length-{decoding}"
    return make_panel(folder, kind, evaluation.files[file], draw, numbers, heading=heading)


def _diversity(evaluation: Evaluation, folder: Path) -> Section:
    groups = {}
    for decoding in evaluation.decodings:
        heading = f"Distinct-n, decoding {decoding}"
        made = (_distinct(evaluation, folder, decoding, file, heading) for file in evaluation.files)
        groups[heading] = [panel for panel in made if panel]
    groups["Loss on references, nats a token"] = overview(evaluation, folder, "reference_loss")
    text = "Different n-grams as a share of all n-grams in the answers to a set, and the language-modelling loss."
    return Section("diversity", "Diversity and loss", text, groups)


def _distinct(evaluation: Evaluation, folder: Path, decoding: str, file: str, heading: str) -> Panel | None:
    series = []
    for model in evaluation.models:
        cells = [spread_of(evaluation, decoding, file, model.source, f"distinct_{n}") or {} for n in range(1, 5)]
        if any(cell.get("mean") is not None for cell in cells):
            series.append(Series(model.label, model.style, range(1, 5), [cell.get("mean") for cell in cells]))
    if not series:
        return None

    def draw(canvas) -> None:
        axes = canvas.subplots()
        lines(axes, series, points=True)
        axes.set_xticks(range(1, 5))
        axes.set_xlabel("n")

    curves = ("n", series)
    return make_panel(folder, f"distinct-{decoding}", evaluation.files[file], draw, curves=curves, heading=heading)


def _judge(evaluation: Evaluation, folder: Path) -> Section:
    text = (
        "What became of the answers that were given to the judge, all data sets together. Its score is over the rated "
        "ones alone: malformed replies held no scores, failed questions got no reply."
    )
    return Section("judge", "Judge", text, table=judge_table(evaluation), legend=False, heads=2)


def _entries(evaluation: Evaluation, part: str, name: str) -> list[tuple[Model, dict]]:
    """The entries that a part of metrics.json has for a file or task, with their models, in the order of the models."""
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
