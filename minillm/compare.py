"""python -m minillm.compare RUNS_DIR: what each setting did, of all runs below a directory, as a table and compare.png.

RUNS_DIR is a sweep (runs/alpha), or any directory with runs in it. Only settings that differ are shown.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from minillm.common import cli
from minillm.common.changes import ABSENT, NOTHING, within
from minillm.common.console import say
from minillm.common.errors import ConfigError, DataError, nearest
from minillm.common.files import write_whole
from minillm.common.labels import headings, short, shorts
from minillm.common.numbers import count, is_finite
from minillm.common.read import STEP, RunFiles, find_runs, higher_is_better

_FEW = 6  # settings that are all shown where they fit
_NAME, _CELL = 24, 20  # characters of a run's name and of a setting
_MEANS = 12  # values of a setting whose means are shown
_USUAL = ("val/reverse_kl", "val/rouge_l", "val/loss")
_COLOURS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #999933 #882255 #44aa99 #555555".split()
_PANELS, _ACROSS = 9, 3  # settings that get a panel; panels in a row
_LEGEND, _NAMES = 14, 20  # curves that get a name; values of a setting that do


def compare(folder: Path, figure: str | None = None, settings: Sequence[str] = ()) -> Path:
    """Print the table and the mean for each value of each setting; draw the picture. Returns its file.

    Raises:
        DataError, ConfigError: fewer than two runs, or names that no run has.
    """
    runs = read_runs(folder)
    figure = choose_figure(runs, figure)
    known = {key for run in runs for key in run.settings}
    if wrong := [key for key in settings if key not in known]:
        raise ConfigError(f"--settings {key}: no run has it; {nearest(key, known)}" for key in wrong)
    keys = differing(runs)
    few = keys if len(keys) <= _FEW else telling([run.settings for run in runs if run.settings], keys)
    shown = list(settings) or few
    values = {run.name: value for run in runs if (value := value_of(run, figure)) is not None}
    higher = higher_is_better(figure)
    worst = -math.inf if higher else math.inf
    runs.sort(key=lambda run: values.get(run.name, worst), reverse=bool(higher))
    title = figure if higher is None else f"{figure} ({'higher' if higher else 'lower'} is better)"
    in_table = _show(runs, values, figure, shown, f"{len(runs)} runs below {folder}, by {title}")
    for run in runs:
        if run.note:
            say(f"{run.name} {run.state}: {run.note}")
    there = [run for run in runs if run.name in values]
    groups = {key: grouped([run for run in there if run.settings], key) for key in shown}
    for key, each in groups.items():
        if 1 < len(each) < len(there):
            names = shorts([value for value, _ in each], 28)
            means = [
                f"{name}: {count(mean(values[run.name] for run in some), 4)} (of {len(some)})"
                for name, (_, some) in zip(names, each, strict=True)
            ]
            say(f"{key}, mean {figure}: " + "; ".join(means[:_MEANS]) + ("; ..." if len(means) > _MEANS else ""))
    if rest := [key for key in dict.fromkeys([*shown, *keys]) if key not in in_table]:
        say(f"{len(rest)} more settings differ (--settings KEY,... chooses): {', '.join(rest)}")
    write_whole(file := folder / "compare.png", picture(runs, values, groups, figure, title))
    say(f"Wrote {file}")
    return file


def read_runs(folder: Path) -> list[RunFiles]:
    """Every run below `folder`, with the figures of its validations alone: all rows of thousands of runs do not fit
    into memory. Raises DataError where there are not two to compare."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory; wanted one with run directories, such as runs/alpha")
    if len(found := find_runs(folder)) < 2:
        there = f"one run only ({found[0].name})" if found else "no run in it"
        raise DataError(f"{folder}: {there}; wanted two or more, with config.yaml, metrics.csv and metrics.json")
    runs = []
    for each in found:
        run = RunFiles.read(each, str(each.relative_to(folder)))
        rows = ({name: row[name] for name in row if name == STEP or name.startswith("val/")} for row in run.rows)
        runs.append(replace(run, rows=tuple(row for row in rows if len(row) > 1)))
    return runs


def differing(runs: Sequence[RunFiles]) -> list[str]:
    """Settings of which there are two values or more, in the order of the config, those that follow from others (the
    class of a choice, the shape of a model) last; runs without a config say nothing."""
    known = [run.settings for run in runs if run.settings]
    keys = [key for key in dict.fromkeys(key for settings in known for key in settings) if not within(key, NOTHING)]
    keys = [key for key in keys if len({repr(settings.get(key, ABSENT)) for settings in known}) > 1]
    return sorted(keys, key=lambda key: "_target_" in key or ".architecture." in key)


def telling(settings: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """A small set of `keys`, found greedily, whose values distinguish the runs as well as all keys do."""
    chosen: list[str] = []

    def groups(names: Sequence[str]) -> int:
        return len({tuple(repr(each.get(name, ABSENT)) for name in names) for each in settings})

    while groups(chosen) < groups(keys):
        chosen.append(max(keys, key=lambda key: groups([*chosen, key])))
    return chosen


def value_of(run: RunFiles, figure: str) -> float | None:
    """The run's figure in metrics.json, or for an unfinished run the newest one in metrics.csv; None where it is
    missing or not finite."""
    value: Any = run.figures.get(figure)
    if value is None and run.state == "unfinished":
        value = next((each for _, each in reversed(run.curve(figure))), None)
    return float(value) if is_finite(value) else None


def choose_figure(runs: Sequence[RunFiles], wanted: str | None) -> str:
    """`wanted`, or what the sweep optimised. Raises ConfigError where no run has it."""
    names = {name for run in runs for row in (run.figures, *run.rows) for name in row if "/" in name}
    if wanted is None:
        optimised = [run.settings.get("optimized_metric") for run in runs]
        wanted = next((name for name in (*optimised, *_USUAL) if name in names), None)
        if wanted is None:
            raise DataError("no run has been validated yet: metrics.json and metrics.csv hold no figure to compare")
    if wanted not in names:
        raise ConfigError(f"--metric {wanted}: no run has it; {nearest(wanted, names)}")
    return wanted


def grouped(runs: Sequence[RunFiles], key: str) -> list[tuple[Any, list[RunFiles]]]:
    """The values of a setting with their runs: numbers by size, then everything else by its text."""
    groups: dict[tuple, tuple[Any, list[RunFiles]]] = {}
    for run in runs:
        value = run.settings.get(key, ABSENT)
        number = is_finite(value)
        order = (not number, float(value) if number else 0.0, short(value, 10**6))
        groups.setdefault(order, (value, []))[1].append(run)
    return [groups[order] for order in sorted(groups)]


def _show(
    runs: Sequence[RunFiles], values: dict[str, float], figure: str, keys: Sequence[str], title: str
) -> list[str]:
    """The table, with as many of `keys` as its width allows; returns those."""
    others = [name for name in _USUAL[:2] if name != figure and any(name in run.figures for run in runs)]
    columns = {"run": shorts([run.name for run in runs], _NAME)}
    if any(run.state != "finished" for run in runs):
        columns[""] = [run.state for run in runs]
    numbers = headings([figure, *others], "/")
    for name, heading in numbers.items():
        found = [values.get(run.name) if name == figure else value_of(run, name) for run in runs]
        columns[heading] = ["-" if value is None else count(value, 4) for value in found]

    def width(heading: str, cells: Sequence[str]) -> int:
        """With what SIMPLE_HEAD puts between columns. The table has one character more at its end."""
        return 3 + max(map(len, (heading, *cells)))

    left, shown = get_console().width - 1 - sum(width(*each) for each in columns.items()), []
    for key, heading in headings(keys).items():
        cells = shorts([run.settings.get(key, ABSENT) if run.settings else "?" for run in runs], _CELL)
        if (needed := width(heading, cells)) <= left:
            left -= needed
            columns[heading] = cells
            shown.append(key)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in columns:
        table.add_column(escape(heading), overflow="fold", justify="right" if heading in numbers.values() else "left")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    get_console().print(table)
    return shown


def picture(runs: Sequence[RunFiles], values: dict[str, float], groups: dict, figure: str, title: str) -> bytes:
    """A PNG: the figure's curve in each run (best first), and a panel for each setting, whose `groups` are of
    `grouped`: a dot a run, and the mean of each value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    panels = {key: groups[key] for key in list(groups)[:_PANELS] if groups[key]}
    n_rows = 1 + -(-len(panels) // _ACROSS)
    canvas = Figure(figsize=(12, 4.2 + 3.2 * (n_rows - 1)), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.add_gridspec(n_rows, _ACROSS, height_ratios=[1.35] + [1] * (n_rows - 1))
    axes = canvas.add_subplot(grid[0, :])
    curves = [run.curve(figure) for run in runs]
    for run, curve, colour in zip(runs[:_LEGEND], curves, _COLOURS * 2, strict=False):
        if curve:
            done = run.state == "finished"
            label = short(run.name, 44) + ("" if done else f" ({run.state})")
            style = dict(color=colour, linestyle="-" if done else "--", marker="o", markersize=3)
            axes.plot(*zip(*curve, strict=True), **style, label=label)
    axes.add_collection(LineCollection(list(filter(None, curves[_LEGEND:])), colors="#555555", alpha=0.2))
    axes.autoscale()
    axes.set(xlabel="optimizer step (the supervised start's too)", ylabel=figure)
    axes.set_title(f"{title}; dashed, hollow: not finished", fontsize=12, loc="left")
    if any(curves):
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    colours = {run.name: _COLOURS[n % len(_COLOURS)] for n, run in enumerate(runs)}
    for number, (key, found) in enumerate(panels.items()):
        axes = canvas.add_subplot(grid[1 + number // _ACROSS, number % _ACROSS])
        axes.set(xlabel=key, ylabel=figure)
        numeric = all(is_finite(value) for value, _ in found)
        places = [float(value) if numeric else number for number, (value, _) in enumerate(found)]
        dots = [(place, run) for place, (_, some) in zip(places, found, strict=True) for run in some]
        edges = [colours[run.name] for _, run in dots]
        faces = [colours[run.name] if run.state == "finished" else "none" for _, run in dots]
        heights = [values[run.name] for _, run in dots]
        axes.scatter([place for place, _ in dots], heights, facecolors=faces, edgecolors=edges)
        means = [mean(values[run.name] for run in some) for _, some in found]
        axes.plot(places, means, color="#999999", linewidth=float(numeric), marker="_", markersize=16, zorder=0)
        if not numeric:
            few = len(found) <= _NAMES
            axes.set_xticks(places if few else [], [short(value) for value, _ in found] if few else [], rotation=20)
            axes.set_xlim(-0.5, len(found) - 0.5)
        elif min(places) > 0 and max(places) >= 20 * min(places):
            axes.set_xscale("log")
    for axes in canvas.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    png = io.BytesIO()
    canvas.savefig(png, dpi=120)
    return png.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillm.compare", description="What each setting did.")
    parser.add_argument("runs_dir", type=Path, help="a sweep's directory, or any with runs in it")
    parser.add_argument("--metric", help="of metrics.json, such as val/rouge_l; default: what the sweep optimised")
    parser.add_argument("--settings", default="", help="keys to show, with commas; default: the first that differ")
    given = parser.parse_args()
    compare(given.runs_dir, given.metric, [key for key in given.settings.split(",") if key])


if __name__ == "__main__":
    cli.run(main, "train")
