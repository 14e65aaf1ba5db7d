"""One picture of a comparison: the figure by each setting, and its curve in each run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from minillm.common.columns import ABSENT, short
from minillm.common.numbers import is_finite
from minillm.common.read import RunFiles

_COLOURS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #999933 #882255 #44aa99 #555555".split()
_PANELS, _ACROSS, _LEGEND = 9, 3, 14  # settings that get a panel; panels in a row; curves that get a name


def draw(
    runs: Sequence[RunFiles],
    values: Mapping[str, float],
    settings: Sequence[str],
    labels: Mapping[str, str],
    figure: str,
    better: str,
    file: Path,
) -> None:
    """Write a PNG.

    Args:
        runs: best first. values: the figure of those that have one, by name. settings: keys that differ.
        labels: what a run is called in the legend, by name. better: a word for the axis, such as "lower is better".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(settings[:_PANELS])
    n_rows = 1 + -(-len(shown) // _ACROSS)
    canvas = Figure(figsize=(12, 4.2 + 3.2 * (n_rows - 1)), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.add_gridspec(n_rows, _ACROSS, height_ratios=[1.35] + [1] * (n_rows - 1))
    colours = {run.name: _COLOURS[number % len(_COLOURS)] for number, run in enumerate(runs)}
    axes = canvas.add_subplot(grid[0, :2])
    _curves(axes, runs, labels, colours, figure)
    beside = canvas.add_subplot(grid[0, 2])
    beside.set_axis_off()
    more = f"the best {_LEGEND} of {len(runs)}" if len(runs) > _LEGEND else None
    beside.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="upper left", frameon=False, title=more)
    axes.set_title(f"{figure} ({better})" if better else figure, fontsize=12, loc="left")
    if any(run.state != "finished" for run in runs):
        axes.set_title("dashed, hollow: not finished", fontsize=9, loc="right", color="#555555")
    for number, key in enumerate(shown):
        axes = canvas.add_subplot(grid[1 + number // _ACROSS, number % _ACROSS])
        _by_setting(axes, [run for run in runs if run.name in values], values, key, colours)
        axes.set_ylabel(figure)
    for axes in canvas.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    canvas.savefig(file, dpi=120)


def _curves(axes, runs: Sequence[RunFiles], labels: Mapping[str, str], colours: Mapping[str, str], figure: str) -> None:
    for number, run in enumerate(runs):
        points = run.curve(figure)
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        ended = run.state == "finished"
        axes.plot(
            steps,
            values,
            color=colours[run.name],
            linestyle="-" if ended else "--",
            marker="o",
            markersize=3,
            label=labels[run.name] + ("" if ended else f" ({run.state})") if number < _LEGEND else None,
            alpha=1.0 if number < _LEGEND else 0.3,
        )
    axes.set_xlabel("optimizer step (the supervised start's too)")
    axes.set_ylabel(figure)
    if not axes.lines:
        axes.text(0.5, 0.5, "no validation yet", ha="center", transform=axes.transAxes)


def _by_setting(
    axes, runs: Sequence[RunFiles], values: Mapping[str, float], key: str, colours: Mapping[str, str]
) -> None:
    """A dot a run, the mean of each value as a line through numbers, as a bar over names."""
    given = {run.name: run.settings.get(key, ABSENT) for run in runs}
    numeric = all(map(is_finite, given.values()))
    if numeric:
        places, ticks = {name: float(each) for name, each in given.items()}, None
        positive = [each for each in places.values() if each > 0]
        if len(positive) == len(places) and positive and max(positive) >= 20 * min(positive):
            axes.set_xscale("log")
    else:
        names = sorted({short(each) for each in given.values()})
        places = {name: float(names.index(short(each))) for name, each in given.items()}
        ticks = names
    groups: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        groups[places[run.name]].append(values[run.name])
        hollow = run.state != "finished"
        axes.plot(
            places[run.name],
            values[run.name],
            marker="o",
            color=colours[run.name],
            fillstyle="none" if hollow else "full",
            zorder=3,
        )
    means = sorted((place, mean(each)) for place, each in groups.items())
    if ticks is None:
        axes.plot(*zip(*means, strict=True), color="#999999", linewidth=1)
    else:
        for place, middle in means:
            axes.hlines(middle, place - 0.2, place + 0.2, color="#999999", linewidth=1.5)
        axes.set_xticks(range(len(ticks)), ticks, rotation=0 if max(map(len, ticks)) < 12 else 20, fontsize=8)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(key)
