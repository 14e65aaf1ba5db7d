"""Small plots in one style: each as a PNG, and as an SVG for the page that takes its colours and font from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Each colour of a drawing is one of these and becomes the page's variable of that name, which dark mode changes.
INK, FAINT, RULE, PAPER, TEACHER = "#1c1d20", "#66655f", "#dcdad3", "#fffffd", "#7b7a74"
STUDENTS = "#2b6cb0 #c8452f #2a8757 #8451a6 #a8730d #16818f #b8437f #6c5b3c".split()
COLOURS = (TEACHER, *STUDENTS)
_VARIABLES = {INK: "ink", FAINT: "faint", RULE: "rule", PAPER: "paper"} | {c: f"m{n}" for n, c in enumerate(COLOURS)}
_MARKERS = "DosvP^X*d"
# The same shapes in a square of 12, for the page's legends.
MARKS = (
    "M6 1 11 6 6 11 1 6z", "M6 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z", "M2 2h8v8H2z", "M1 2h10L6 11z",
    "M4 1h4v3h3v4H8v3H4V8H1V4h3z", "M6 1l5 9H1z",
    "M3.5 1 6 3.5 8.5 1 11 3.5 8.5 6 11 8.5 8.5 11 6 8.5 3.5 11 1 8.5 3.5 6 1 3.5z",
    "M6 .5 7.5 4.4 11.5 4.6 8.4 7.2 9.4 11.2 6 9 2.6 11.2 3.6 7.2.5 4.6 4.5 4.4z", "M6 0 9 6 6 12 3 6z",
)  # fmt: skip
_WIDTH = 5.0  # inches; 360 units of the SVG, about as wide as a phone, so that text keeps its size
_STYLE = {
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # names are no formulas
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Series:
    """One model's curve or points. `style` chooses colour and marker: 0 is the teacher. A None has no value."""

    name: str
    style: int
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    hollow: bool = False  # as points: another decoding


@dataclass(frozen=True)
class Frame:
    """`box`: left, right, top, bottom of the axes in the SVG's units; `limits`: x at left and right."""

    box: tuple[float, float, float, float]
    limits: tuple[float, float]


def colour(style: int) -> str:
    return COLOURS[slot(style)]


def slot(style: int) -> int:
    """Colours repeat after the last student's."""
    return 0 if style == 0 else 1 + (style - 1) % len(STUDENTS)


def render(
    name: str, title: str, draw: Callable, folder: Path, *, height: float = 3.1, width: float = _WIDTH
) -> tuple[str, Path, Frame]:
    """`draw(figure)` on a new figure -> SVG for the page, without title and legend, the PNG that has both, and where
    the SVG's data lie."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a script that the PNG's font lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        frame = _frame(figure)
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
        named = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
        handles = {label: handle for pairs in named for handle, label in pairs}
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)
            figure.set_figheight(height + 0.22 * -(-len(handles) // 2))
        file = folder / f"{name}.png"
        figure.savefig(file, dpi=200, facecolor="white")
    return page_svg(text.getvalue(), title), file, frame


def _frame(figure) -> Frame:
    width, height = 72 * figure.get_size_inches()
    above, below = figure.axes[0].get_position(), figure.axes[-1].get_position()
    box = (above.x0 * width, above.x1 * width, (1 - above.y1) * height, (1 - below.y0) * height)
    return Frame(box, figure.axes[0].get_xlim())


def page_svg(svg: str, title: str) -> str:
    """matplotlib's SVG as a part of the page: variables for colours, no ids that two plots could share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    svg = re.sub("#[0-9a-f]{6}", lambda found: _variable(found[0]), svg)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", lambda m: f'<svg {m[1]} role="img" aria-label="{label}">', svg
    )


def _variable(hexcode: str) -> str:
    return f"var(--{_VARIABLES[hexcode]})" if hexcode in _VARIABLES else hexcode


def lines(axes, series: Sequence[Series], *, points: bool = False) -> None:
    """Curves with their bands, the teacher's dashed; gaps where there is no value."""
    for each in series:
        x, y = np.asarray(each.x, float), _array(each.y)
        style = dict(color=colour(each.style), linestyle="--" if each.style == 0 else "-")
        marker = _MARKERS[each.style % len(_MARKERS)] if points or np.isfinite(y).sum() == 1 else None
        axes.plot(x, y, label=each.name, marker=marker, **style)
        if each.low is not None:
            axes.fill_between(x, _array(each.low), _array(each.high), color=colour(each.style), alpha=0.16, linewidth=0)


def dots(axes, series: Sequence[Series]) -> None:
    """A line of text and a point with its interval for each name; a second point of the same name lies below."""
    names = list(dict.fromkeys(each.name for each in series))
    seen: dict[str, int] = {}
    for each in series:
        turn = seen[each.name] = seen.get(each.name, -1) + 1
        place, shade = names.index(each.name) + 0.24 * turn, colour(each.style)
        if each.y[0] is None:
            continue
        if each.low is not None and each.low[0] is not None:
            axes.plot([each.low[0], each.high[0]], [place] * 2, color=shade, linewidth=1.4)
        face = PAPER if each.hollow else shade
        axes.plot(each.y, [place], marker=_MARKERS[each.style % len(_MARKERS)], color=shade, mfc=face, markersize=5.5)
    for number, name in enumerate(names):
        short = name if len(name) <= 40 else f"{name[:39]}…"
        axes.annotate(
            short, (0, number - 0.32), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points",
            fontsize=10.5, color=INK, va="center",
        )  # fmt: skip
    axes.set_ylim(len(names) - 0.35, -0.65)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)


def bins(axes, names: Sequence[str], series: Sequence[Series]) -> None:
    """Points with intervals side by side above each name."""
    for number, each in enumerate(series):
        shift = 0.6 * ((number + 0.5) / len(series) - 0.5)
        x, y = np.asarray(each.x, float) + shift, _array(each.y)
        shade = colour(each.style)
        axes.plot(x, y, marker=_MARKERS[each.style % len(_MARKERS)], color=shade, linestyle="none", label=each.name)
        axes.vlines(x, _array(each.low), _array(each.high), color=shade, linewidth=1.4)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="x", visible=False)


def reliability(axes, rows: Sequence[dict], style: int) -> None:
    """Accuracy of each bin as a bar, against the diagonal of a calibrated model; the share of records below."""
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    total = sum(each["count"] for each in rows) or 1
    for each in rows:
        if not each["count"]:
            continue
        low, width = min(each["low"], 0.97), max(each["high"] - each["low"], 0.03)
        axes.bar(
            low,
            each["accuracy"],
            width,
            align="edge",
            color=colour(style),
            alpha=0.3,
            edgecolor=colour(style),
            linewidth=1,
        )
        axes.plot(each["confidence"], each["accuracy"], marker="o", markersize=4, color=colour(style))
        axes.bar(low, -0.2 * each["count"] / total, width, align="edge", color=FAINT, alpha=0.6, linewidth=0)
    axes.axhline(0, color=FAINT, linewidth=0.7)
    axes.set(xlim=(0.45 if all(not r["count"] or r["low"] >= 0.45 for r in rows) else 0, 1.0), ylim=(-0.22, 1.02))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")


@contextmanager
def stacked(figure) -> Iterator[tuple]:
    """A large panel over a small one with the same x."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    yield above, below
    below.set_ylim(bottom=0)
    below.locator_params(axis="y", nbins=2)


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
