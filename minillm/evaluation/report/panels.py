"""Plots with their titles and numbers, in sections: what evaluations and training runs both draw."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minillm.common.read import RunFiles
from minillm.evaluation.report.plots import Series, dots, lines, render, slot
from minillm.evaluation.report.source import Evaluation
from minillm.evaluation.report.tables import spread_of

CURVES = {
    "val/rouge_l": "Validation: Rouge-L",
    "val/reverse_kl": "Validation: reverse KL, nats a token",
    "val/loss": "Validation: loss on references, nats a token",
    "val/exact_match": "Validation: exact match",
    "val/length": "Validation: length, tokens",
    "val/distinct_4": "Validation: distinct-4",
    "train/loss": "Training: loss",
    "start/loss": "Supervised start: loss",
    "rollout/reverse_kl_sampled": "Rollouts: reverse KL, sampled",
    "rollout/length": "Rollouts: length, tokens",
    "optim/grad_norm": "Gradient norm",
    "optim/learning_rate": "Learning rate",
}
_ROWS = 24  # of the numbers below a curve


@dataclass(frozen=True)
class Panel:
    """A plot: `title` alone, `caption` below a group's heading, `svg` for the page, its PNG, and its numbers; `curves`
    has what the page shows of a curve that is pointed at."""

    name: str
    title: str
    caption: str
    svg: str
    png: Path
    columns: list[str]
    rows: list[list[str]]
    curves: dict | None = None


@dataclass(frozen=True)
class Section:
    """`groups`: plots by heading ("" has none); `table`: columns and rows of text, below the plots, of which the first
    `heads` columns name the row."""

    key: str
    title: str
    text: str
    groups: dict[str, list[Panel]] = field(default_factory=dict)
    table: tuple[list[str], list[list[str]]] | None = None
    legend: bool = True
    heads: int = 1

    @property
    def panels(self) -> list[Panel]:
        return [panel for panels in self.groups.values() for panel in panels]


def make_panel(
    folder: Path,
    kind: str,
    caption: str,
    draw: Callable,
    numbers: tuple | None = None,
    *,
    curves: tuple[str, Sequence[Series]] | None = None,
    heading: str = "",
    height: float = 3.1,
) -> Panel:
    """Draw and write <kind>-<caption>.png into `folder`; a name that is taken gets a number.

    Args:
        numbers: columns and rows; of `curves`, the name of x and the series, where there are none.
    """
    name = stem = f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', caption)}"[:100]
    number = 2
    while (folder / f"{name}.png").exists():
        name, number = f"{stem}-{number}", number + 1
    title = f"{caption}: {heading}" if heading else caption
    svg, png, frame = render(name, title, draw, folder, height=height)
    shown = curves and {"x": curves[0], "box": frame.box, "limits": frame.limits, "series": [*map(_points, curves[1])]}
    return Panel(name, title, caption, svg, png, *(numbers or _numbers_of(*curves)), shown)


def _points(series: Series) -> dict:
    pairs = zip(series.x, series.y, strict=True)
    points = [[x, float(f"{y:.4g}")] for x, y in pairs if y is not None]
    return {"label": series.name, "slot": slot(series.style), "points": points}


def overview(evaluation: Evaluation, folder: Path, figure: str) -> list[Panel]:
    """One plot a file: each model's mean with its interval; decodings after the first are hollow, below the first."""
    panels = [_dots(evaluation, folder, file, figure) for file in evaluation.files]
    return [panel for panel in panels if panel]


def _dots(evaluation: Evaluation, folder: Path, file: str, figure: str) -> Panel | None:
    decodings = evaluation.decodings[:1] if figure == "reference_loss" else evaluation.decodings
    series, rows, known = [], [], evaluation.figures[figure]
    for model in evaluation.models:
        for number, decoding in enumerate(decodings):
            cell = spread_of(evaluation, decoding, file, model.source, figure)
            if cell is not None:
                values = ([cell[key]] for key in ("mean", "low", "high"))
                series.append(Series(model.label, model.style, [0], *values, hollow=number > 0))
                interval = text_of((cell["low"], cell["high"]), known.digits)
                rows.append([model.label, decoding, text_of(cell["mean"], known.digits), interval, str(cell["n"])])
    if not any(each.y[0] is not None for each in series):
        return None

    def draw(canvas) -> None:
        axes = canvas.subplots()
        dots(axes, series)
        axes.set_xlabel(known.name)

    numbers = (["model", "decoding", "mean", "95%", "prompts"], rows)
    height = 0.8 + 0.56 * len({each.name for each in series})
    return make_panel(folder, figure, evaluation.files[file], draw, numbers, heading=known.name, height=height)


def learning_curves(runs: dict[str, tuple[int, RunFiles]], folder: Path, figures: Sequence[str]) -> list[Panel]:
    """One plot a figure that any run has; `runs`: style and run by name."""
    panels = []
    for figure in figures:
        series = [
            Series(name, style, *map(list, zip(*curve, strict=True)))
            for name, (style, run) in runs.items()
            if (curve := [point for point in run.curve(figure) if math.isfinite(point[1])])
        ]
        if not series:
            continue

        def draw(canvas, series=series, figure=figure) -> None:
            axes = canvas.subplots()
            lines(axes, series, points=figure.startswith("val/"))
            axes.set_xlabel("optimizer step")

        heading = CURVES.get(figure, figure.replace("val/", "Validation: "))
        panels.append(make_panel(folder, "curve", heading, draw, curves=("step", series)))
    return panels


def _numbers_of(x: str, series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table below a plot; of long curves some rows, with the last."""
    values = [dict(zip(each.x, each.y, strict=True)) for each in series]
    places = sorted({place for each in values for place in each})
    step = -(-len(places) // _ROWS)
    chosen = sorted({*places[::step], places[-1]}) if places else []
    rows = [[f"{place:g}", *(text_of(each.get(place), 3) for each in values)] for place in chosen]
    return [x, *(each.name for each in series)], rows


def text_of(value: float | Sequence[float | None] | None, digits: int) -> str:
    """A number, or an interval of two; a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return f"{value:.{digits}f}"
    return "–" if None in value else f"[{value[0]:.{digits}f}, {value[1]:.{digits}f}]"
