"""Small plots in one style, with their numbers: a PNG, and an SVG that takes its colours and font from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from minillm.evaluation.report.tables import Table, cell_text

# Each colour of a drawing is one of these and becomes the page's variable of that name, which dark mode changes.
INK, FAINT, RULE, PAPER, TEACHER = "#1c1d20", "#66655f", "#dcdad3", "#fffffd", "#7b7a74"
STUDENTS = "#2b6cb0 #c8452f #2a8757 #8451a6 #a8730d #16818f #b8437f #6c5b3c".split()
COLOURS = (TEACHER, *STUDENTS)
_VARIABLES = {INK: "ink", FAINT: "faint", RULE: "rule", PAPER: "paper"} | {c: f"m{n}" for n, c in enumerate(COLOURS)}
_MARKERS = "DosvP^X*d"
_STYLE = Path(__file__).with_name("plots.mplstyle")
_ROWS = 24  # of the numbers below a curve


@dataclass(frozen=True)
class Series:
    """One model's curve or points. `style` chooses colour and marker: 0 is the teacher. `points`: (x, y, low, high), x
    a number or a name, the others None where there is no value. `at`: where a point stands if not at its x."""

    name: str
    style: int
    points: Sequence[tuple]
    at: Sequence[float | None] = ()

    @property
    def colour(self) -> str:
        return COLOURS[slot(self.style)]

    @property
    def marker(self) -> str:
        return _MARKERS[self.style % len(_MARKERS)]


@dataclass
class Panel:
    """A plot: `title` alone, `caption` below a group's heading, `svg` for the page, `png` draws it for a file, and its
    numbers; `curves` has what the page shows of a curve that is pointed at."""

    name: str
    title: str
    caption: str
    svg: str
    png: Callable[[], bytes]
    numbers: Table
    curves: dict | None


def slot(style: int) -> int:
    """Colours repeat after the last student's."""
    return 0 if style == 0 else 1 + (style - 1) % len(STUDENTS)


def line_panel(
    name: tuple[str, str, str], x: str, series: list[Series], *, y: str = "", below: Sequence[Series] = (),
    counted: str = "alive", marked: bool = False, diagonal: bool = False, digits: int = 3,
) -> list[Panel]:  # fmt: skip
    """Curves with their bands, the teacher's dashed; gaps where there is no value. `below`: what is `counted`, in a
    small plot below. `marked`: a marker at each point. `diagonal`: from (0, 0) to (1, 1)."""
    places = _places(series)
    names = [place for place in places if isinstance(place, str) and not series[0].at]

    def draw(figure) -> None:
        above, *small = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1]) if below else [figure.subplots()]
        if diagonal:
            above.axline((0, 0), (1, 1), color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        for axes, curves in zip((above, *small), (series, below), strict=False):
            for number, each in enumerate(curves):
                at = each.at or [names.index(point[0]) if names else point[0] for point in each.points]
                # Points over names stand side by side.
                at = np.array(at, float) + (0.5 * ((number + 0.5) / len(curves) - 0.5) if names else 0)
                values, low, high = np.array([point[1:] for point in each.points], float).reshape(-1, 3).T
                marker = each.marker if marked or np.isfinite(values).sum() == 1 else None
                line = "none" if names else "--" if each.style == 0 else "-"
                axes.plot(at, values, label=each.name, color=each.colour, linestyle=line, marker=marker)
                if names:
                    axes.vlines(at, low, high, color=each.colour, linewidth=1.4)
                elif np.isfinite(low).any():
                    axes.fill_between(at, low, high, color=each.colour, alpha=0.16, linewidth=0)
        for axes in small:
            axes.set(ylim=(0, None), ylabel=counted)
            axes.locator_params(axis="y", nbins=2)
        if names:
            figure.axes[-1].set_xticks(range(len(names)), names)
        else:
            above.locator_params(axis="x", integer=not diagonal)
        above.set_ylabel(y)
        figure.axes[-1].set_xlabel(x)

    return _panel(name, series, draw, _numbers(x, series, places, digits), curves="" if names or diagonal else x)


def dot_panel(name: tuple[str, str, str], series: list[Series], digits: int) -> list[Panel]:
    """For each name a line of text and a point with its interval; further points of it are hollow and below."""

    def draw(figure) -> None:
        axes = figure.subplots()
        for number, each in enumerate(series):
            for turn, (y, low, high) in enumerate(np.array([point[1:] for point in each.points], float)):
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

    numbers = _numbers("decoding", series, _places(series), digits)
    return _panel(name, series, draw, numbers, height=0.8 + 0.56 * len(series))


def _places(series: Sequence[Series]) -> list:
    """Every x, in order; names as they come."""
    places = list(dict.fromkeys(point[0] for each in series for point in each.points))
    return places if any(isinstance(place, str) for place in places) else sorted(places)


def _numbers(x: str, series: Sequence[Series], places: list, digits: int) -> Table:
    """A row for some of the places, with the last, and a column for each model."""
    values = [{place: dict(mean=y, low=low, high=high) for place, y, low, high in each.points} for each in series]
    rows = []
    for place in dict.fromkeys([*places[:: len(places) // _ROWS + 1], *places[-1:]]):
        texts = (cell_text(of.get(place, {"mean": None}), digits) for of in values)
        rows.append([place if isinstance(place, str) else f"{place:g}", *texts])
    return Table([x, *(each.name for each in series)], rows)


def _panel(
    name: tuple[str, str, str], series: list[Series], draw: Callable, numbers: Table, *, height=3.1, curves: str = ""
) -> list[Panel]:
    """`draw(figure)` on a new figure; nothing where no series has a value. `name`: kind, caption and heading. `curves`
    names x where the page shows the numbers at the place that is pointed at."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if all(point[1] is None for each in series for point in each.points):
        return []
    kind, caption, heading = name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{kind}-{caption}")[:100]
    title = f"{caption}: {heading}" if heading else caption
    svg = io.StringIO()

    @contextmanager
    def style() -> Iterator[None]:
        with rc_context({"svg.hashsalt": stem}, _STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a script that the PNG's font lacks
            yield

    def png() -> bytes:
        out = io.BytesIO()
        with style():
            figure.suptitle(title, x=0.02, ha="left", fontsize=11)
            legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
            if handles := {label: handle for legend in legends for handle, label in legend}:
                figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)
                figure.set_figheight(height + 0.22 * -(-len(handles) // 2))
            figure.savefig(out, format="png", dpi=200, facecolor="white")
        return out.getvalue()

    with style():
        figure = Figure()
        figure.set_figheight(height)
        draw(figure)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    shown = _curves(figure, curves, series) if curves else None
    return [Panel(stem, title, caption, page_svg(svg.getvalue(), title), png, numbers, shown)]


def _curves(figure, x: str, series: list[Series]) -> dict:
    """`box`: left, right, top, bottom of the axes in the SVG's units; `limits`: x at left and right."""
    width, height = 72 * figure.get_size_inches()
    above, below = figure.axes[0].get_position(), figure.axes[-1].get_position()
    box = (above.x0 * width, above.x1 * width, (1 - above.y1) * height, (1 - below.y0) * height)
    shown = []
    for each in series:
        points = [[place, float(f"{y:.4g}")] for place, y, _, _ in each.points if y is not None]
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
