"""One picture of a comparison: the figure by each setting, and its curve in each run."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from minillm.common.columns import ABSENT, short
from minillm.common.files import write_whole
from minillm.common.numbers import is_finite
from minillm.common.read import RunFiles

_COLOURS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #999933 #882255 #44aa99 #555555".split()
_PANELS, _ACROSS = 9, 3  # settings that get a panel; panels in a row
_LEGEND, _NAMES = 14, 20  # curves that get a name; values of a setting that do


def draw(
    runs: Sequence[RunFiles], values: Mapping[str, float], settings: Sequence[str], figure: str, title: str, file: Path
) -> None:
    """Write a PNG.

    Args:
        runs: best first. values: the figure of those that have one, by name. settings: keys that differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = settings[:_PANELS]
    n_rows = 1 + -(-len(shown) // _ACROSS)
    canvas = Figure(figsize=(12, 4.2 + 3.2 * (n_rows - 1)), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.add_gridspec(n_rows, _ACROSS, height_ratios=[1.35] + [1] * (n_rows - 1))
    axes = canvas.add_subplot(grid[0, :2])
    _curves(axes, runs, figure)
    axes.set_title(title, fontsize=12, loc="left")
    if any(run.state != "finished" for run in runs):
        axes.set_title("dashed, hollow: not finished", fontsize=9, loc="right", color="#555555")
    legend = canvas.add_subplot(grid[0, 2])
    legend.set_axis_off()
    more = f"the best {_LEGEND} of {len(runs)}" if len(runs) > _LEGEND else None
    legend.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="upper left", frameon=False, title=more)
    coloured = [(run, _COLOURS[n % len(_COLOURS)]) for n, run in enumerate(runs) if run.name in values]
    for number, key in enumerate(shown if coloured else ()):
        axes = canvas.add_subplot(grid[1 + number // _ACROSS, number % _ACROSS])
        _by_setting(axes, coloured, values, key)
        axes.set_ylabel(figure)
    for axes in canvas.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    png = io.BytesIO()
    canvas.savefig(png, dpi=120)
    write_whole(file, png.getvalue())


def _curves(axes, runs: Sequence[RunFiles], figure: str) -> None:
    """The best runs by name; all others as one faint collection, which is drawn at once."""
    from matplotlib.collections import LineCollection

    points = [run.curve(figure) for run in runs]
    for run, each, colour in zip(runs[:_LEGEND], points, _COLOURS * 2, strict=False):
        if each:
            style = "-" if run.state == "finished" else "--"
            label = short(run.name, 44) + ("" if run.state == "finished" else f" ({run.state})")
            axes.plot(*zip(*each, strict=True), color=colour, linestyle=style, marker="o", markersize=3, label=label)
    axes.add_collection(LineCollection(list(filter(None, points[_LEGEND:])), colors="#555555", alpha=0.2))
    axes.autoscale()
    axes.set_xlabel("optimizer step (the supervised start's too)")
    axes.set_ylabel(figure)
    if not any(points):
        axes.text(0.5, 0.5, "no validation yet", ha="center", transform=axes.transAxes)


def _by_setting(axes, runs: Sequence[tuple[RunFiles, str]], values: Mapping[str, float], key: str) -> None:
    """A dot a run, the mean of each value as a line through numbers, as a bar over names."""
    given = [run.settings.get(key, ABSENT) for run, _ in runs]
    numeric = all(map(is_finite, given))
    texts = [] if numeric else list(map(short, given))
    ticks = {text: number for number, text in enumerate(sorted(set(texts)))}
    places = [float(each) for each in given] if numeric else [ticks[text] for text in texts]
    if numeric and min(places) > 0 and max(places) >= 20 * min(places):
        axes.set_xscale("log")
    groups: dict[float, list[float]] = defaultdict(list)
    for place, (run, _) in zip(places, runs, strict=True):
        groups[place].append(values[run.name])
    heights, edges = [values[run.name] for run, _ in runs], [colour for _, colour in runs]
    faces = [colour if run.state == "finished" else "none" for run, colour in runs]
    axes.scatter(places, heights, facecolors=faces, edgecolors=edges, zorder=3)
    means = sorted((place, mean(each)) for place, each in groups.items())
    if numeric:
        axes.plot(*zip(*means, strict=True), color="#999999", linewidth=1)
    else:
        axes.hlines([middle for _, middle in means], *zip(*((n - 0.2, n + 0.2) for n, _ in means), strict=True),
                    color="#999999", linewidth=1.5)  # fmt: skip
        few = len(ticks) <= _NAMES
        axes.set_xticks(range(len(ticks)) if few else [], ticks if few else [], rotation=20, fontsize=8)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(key)
