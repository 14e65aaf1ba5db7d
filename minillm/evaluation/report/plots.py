"""Small plots in one style, with their numbers: a PNG, and an SVG that takes its colours and font from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from minillm.evaluation.report.tables import Table, text_of

# Each colour of a drawing is one of these and becomes the page's variable of that name, which dark mode changes.
INK, FAINT, RULE, PAPER, TEACHER = "#1c1d20", "#66655f", "#dcdad3", "#fffffd", "#7b7a74"
STUDENTS = "#2b6cb0 #c8452f #2a8757 #8451a6 #a8730d #16818f #b8437f #6c5b3c".split()
COLOURS = (TEACHER, *STUDENTS)
_VARIABLES = {INK: "ink", FAINT: "faint", RULE: "rule", PAPER: "paper"} | {c: f"m{n}" for n, c in enumerate(COLOURS)}
_MARKERS = "DosvP^X*d"
_STYLE = Path(__file__).with_name("plots.mplstyle")
_ROWS = 24  # of the numbers below a curve
SOFTWARE = "minillm.evaluation.report"  # in the header of each PNG: a report deletes no other


@dataclass(frozen=True)
class Series:
    """One model's curve or points. `style` chooses colour and marker: 0 is the teacher. A None has no value. `n`:
    prompts behind each point."""

    name: str
    style: int
    x: Sequence
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    n: Sequence[int | None] = ()

    @property
    def colour(self) -> str:
        return COLOURS[slot(self.style)]

    @property
    def marker(self) -> str:
        return _MARKERS[self.style % len(_MARKERS)]


@dataclass
class Panel:
    """A plot: `title` alone, `caption` below a group's heading, `svg` for the page, `png`, and its numbers; `curves`
    has what the page shows of a curve that is pointed at."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes
    numbers: Table
    curves: dict | None


def slot(style: int) -> int:
    """Colours repeat after the last student's."""
    return 0 if style == 0 else 1 + (style - 1) % len(STUDENTS)


def line_panel(
    name: tuple[str, str, str], x: str, series: list[Series], *, y: str = "", alive: Sequence = (), points: bool = False
) -> list[Panel]:
    """Curves with their bands, the teacher's dashed; gaps where there is no value. `alive`: how many answers are as
    long, in a small plot below."""

    def draw(figure) -> None:
        above, *small = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1]) if alive else [figure.subplots()]
        for axes, curves in zip((above, *small), (series, alive), strict=False):
            for each in curves:
                y_values, dashes = np.array(each.y, float), "--" if each.style == 0 else "-"
                marker = each.marker if points or np.isfinite(y_values).sum() == 1 else None
                axes.plot(each.x, y_values, label=each.name, color=each.colour, linestyle=dashes, marker=marker)
                if each.low is not None:
                    low, high = np.array([each.low, each.high], float)
                    axes.fill_between(each.x, low, high, color=each.colour, alpha=0.16, linewidth=0)
        for axes in small:
            axes.set(ylim=(0, None), ylabel="alive")
            axes.locator_params(axis="y", nbins=2)
        above.locator_params(axis="x", integer=True)
        above.set_ylabel(y)
        figure.axes[-1].set_xlabel(x)

    values = [dict(zip(each.x, each.y, strict=True)) for each in series]
    places = sorted({place for each in values for place in each})
    chosen = sorted({*places[:: len(places) // _ROWS + 1], *places[-1:]})  # some of many, with the last
    rows = [[f"{place:g}", *(text_of(each.get(place), 3) for each in values)] for place in chosen]
    return _panel(name, series, draw, Table([x, *(each.name for each in series)], rows), curves=x)


def dot_panel(name: tuple[str, str, str], series: list[Series], digits: int) -> list[Panel]:
    """For each name a line of text and a point with its interval; further points of it are hollow and below."""

    def draw(figure) -> None:
        axes = figure.subplots()
        for number, each in enumerate(series):
            points = np.array([each.y, each.low, each.high], float).T
            for turn, (y, low, high) in enumerate(points):
                place, face = number + 0.24 * turn, PAPER if turn else each.colour
                axes.plot([low, high], [place] * 2, color=each.colour, linewidth=1.4)
                axes.plot([y], [place], marker=each.marker, color=each.colour, mfc=face, markersize=5.5)
            short = each.name if len(each.name) <= 40 else f"{each.name[:39]}…"
            left = axes.get_yaxis_transform()
            axes.text(0.006, number - 0.32, short, transform=left, fontsize=10.5, color=INK, va="center")
        axes.set(ylim=(len(series) - 0.35, -0.65), yticks=[], xlabel=name[-1])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.06)

    return _panel(name, series, draw, _means("decoding", series, digits), height=0.8 + 0.56 * len(series))


def bin_panel(name: tuple[str, str, str], y: str, series: list[Series], digits: int) -> list[Panel]:
    """Points with intervals side by side above each bin of tokens."""
    bins = list(dict.fromkeys(place for each in series for place in each.x))

    def draw(figure) -> None:
        axes, counts = figure.subplots(), dict.fromkeys(bins, 0)
        for number, each in enumerate(series):
            counts |= {place: max(counts[place], n or 0) for place, n in zip(each.x, each.n, strict=True)}
            x = np.array([bins.index(place) for place in each.x]) + 0.6 * ((number + 0.5) / len(series) - 0.5)
            y_values, low, high = np.array([each.y, each.low, each.high], float)
            axes.plot(x, y_values, marker=each.marker, color=each.colour, linestyle="none", label=each.name)
            axes.vlines(x, low, high, color=each.colour, linewidth=1.4)
        axes.set_xticks(range(len(bins)), [f"{place} tokens\nn = {n}" for place, n in counts.items()])
        axes.set(xlim=(-0.5, len(bins) - 0.5), ylabel=y)
        axes.grid(axis="x", visible=False)

    return _panel(name, series, draw, _means("tokens", series, digits))


def _means(x: str, series: list[Series], digits: int) -> Table:
    rows = [
        [each.name, str(place), text_of(mean, digits), text_of((low, high), digits), str(n or 0)]
        for each in series
        for place, mean, low, high, n in zip(each.x, each.y, each.low, each.high, each.n, strict=True)
    ]
    return Table(["model", x, "mean", "95%", "prompts"], rows)


def reliability_panel(name: tuple[str, str, str], bins: list[dict], model: Series, note: str) -> list[Panel]:
    """Accuracy of each bin as a bar, against the diagonal of a calibrated model; the share of records below."""
    filled = [each for each in bins if each["count"] and None not in (each["confidence"], each["accuracy"])]

    def draw(figure) -> None:
        axes, shade = figure.subplots(), model.colour
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        total = sum(each["count"] for each in filled)
        for each in filled:
            low, width = min(each["low"], 0.97), max(each["high"] - each["low"], 0.03)
            axes.bar(low, each["accuracy"], width, align="edge", color=shade, alpha=0.3, edgecolor=shade, linewidth=1)
            axes.plot(each["confidence"], each["accuracy"], marker="o", markersize=4, color=shade)
            axes.bar(low, -0.2 * each["count"] / total, width, align="edge", color=FAINT, alpha=0.6, linewidth=0)
        axes.axhline(0, color=FAINT, linewidth=0.7)
        axes.set(xlim=(0.45 if all(each["low"] >= 0.45 for each in filled) else 0, 1.0), ylim=(-0.22, 1.02))
        axes.set(yticks=[0, 0.25, 0.5, 0.75, 1], xlabel="confidence", ylabel="accuracy")
        axes.spines["bottom"].set_visible(False)
        axes.annotate(note, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=12)

    rows = []
    for each in bins:
        values = [text_of(each[key], 3) for key in ("confidence", "accuracy")]
        rows.append([f"{each['low']:.1f}–{each['high']:.1f}", str(each["count"] or 0), *values])
    numbers = Table(["confidence", "records", "mean confidence", "accuracy"], rows)
    return _panel(name, [model], draw, numbers, height=3.6)


def _panel(
    name: tuple[str, str, str], series: list[Series], draw: Callable, numbers: Table, *, height=3.1, curves: str = ""
) -> list[Panel]:
    """`draw(figure)` on a new figure; nothing where no series has a value. `name`: kind, caption and heading. `curves`
    names x where the page shows the numbers at the place that is pointed at."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if all(value is None for each in series for value in each.y):
        return []
    kind, caption, heading = name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{kind}-{caption}")[:100]
    title = f"{caption}: {heading}" if heading else caption
    svg, png, shown = io.StringIO(), io.BytesIO(), None
    with rc_context({"svg.hashsalt": stem}, _STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a script that the PNG's font lacks
        figure = Figure()
        figure.set_figheight(height)
        draw(figure)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        if curves:
            shown = _curves(figure, curves, series)
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
        legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
        if handles := {label: handle for legend in legends for handle, label in legend}:
            figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)
            figure.set_figheight(height + 0.22 * -(-len(handles) // 2))
        figure.savefig(png, format="png", dpi=200, facecolor="white", metadata={"Software": SOFTWARE})
    return [Panel(stem, title, caption, page_svg(svg.getvalue(), title), png.getvalue(), numbers, shown)]


def _curves(figure, x: str, series: list[Series]) -> dict:
    """`box`: left, right, top, bottom of the axes in the SVG's units; `limits`: x at left and right."""
    width, height = 72 * figure.get_size_inches()
    above, below = figure.axes[0].get_position(), figure.axes[-1].get_position()
    box = (above.x0 * width, above.x1 * width, (1 - above.y1) * height, (1 - below.y0) * height)
    shown = []
    for each in series:
        points = [[x, float(f"{y:.4g}")] for x, y in zip(each.x, each.y, strict=True) if y is not None]
        shown.append({"label": each.name, "slot": slot(each.style), "points": points})
    return {"x": x, "box": box, "limits": figure.axes[0].get_xlim(), "series": shown}


def page_svg(svg: str, title: str) -> str:
    """matplotlib's SVG as a part of the page: variables for colours, no ids that two plots could share."""
    svg = re.sub(r"<(metadata|style).*?</\1>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"(font: [\d.]+px |font-family: )[^;\"<]*", r"\1var(--sans)", svg)
    svg = re.sub("#[0-9a-f]{6}", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], svg)
    size = re.search(r'viewBox="[^"]*"', svg)[0]
    head = f'<svg {size} role="img" aria-label="{escape(title)}">'
    return re.sub("<svg [^>]*>", lambda _: head, svg, count=1)
