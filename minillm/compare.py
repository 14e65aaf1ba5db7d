"""python -m minillm.compare RUNS_DIR: what each setting did, of all runs below a directory, as a table and compare.png.

RUNS_DIR is a sweep (runs/alpha), or any directory with runs in it. Only settings that differ are shown.
"""

from __future__ import annotations

import argparse
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
from minillm.common.changes import NOTHING, within
from minillm.common.columns import ABSENT, derived, headings, shorts, telling
from minillm.common.console import say
from minillm.common.errors import ConfigError, DataError, nearest
from minillm.common.numbers import count, is_finite
from minillm.common.read import STEP, RunFiles, find_runs, higher_is_better
from minillm.experiments.chart import draw

_FEW = 6  # settings that are all shown where they fit
_NAME, _CELL = 24, 20  # characters of a run's name and of a setting
_MEANS = 12  # values of a setting whose means are shown
_USUAL = ("val/reverse_kl", "val/rouge_l", "val/loss")


def read_runs(folder: Path) -> list[RunFiles]:
    """Every run below `folder`. Raises DataError where there are not two to compare."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory; wanted one with run directories, such as runs/alpha")
    found = find_runs(folder)
    if len(found) < 2:
        there = f"one run only ({found[0].name})" if found else "no run in it"
        raise DataError(f"{folder}: {there}; wanted two or more, with config.yaml, metrics.csv and metrics.json")
    return [_validated(RunFiles.read(each, str(each.relative_to(folder)))) for each in found]


def _validated(run: RunFiles) -> RunFiles:
    """The run with the figures of its validations alone: all rows of thousands of runs do not fit into memory."""
    rows = ({name: value for name, value in row.items() if name == STEP or name.startswith("val/")} for row in run.rows)
    return replace(run, rows=tuple(row for row in rows if len(row) > 1))


def differing(runs: Sequence[RunFiles]) -> list[str]:
    """Settings of which there are two values or more, in the order of the config; runs without a config say nothing."""
    known = [run.settings for run in runs if run.settings]
    keys = [key for key in dict.fromkeys(key for settings in known for key in settings) if not within(key, NOTHING)]
    return [key for key in keys if len({repr(settings.get(key, ABSENT)) for settings in known}) > 1]


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


def compare(folder: Path, figure: str | None = None, settings: Sequence[str] = (), out: Path | None = None) -> Path:
    """Print the table and the mean for each value of each setting; draw the picture. Returns its file.

    Raises:
        DataError, ConfigError: fewer than two runs, or names that no run has.
    """
    file = out or folder / "compare.png"
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--out {out}: wanted a PNG file in a directory that is there")
    runs = read_runs(folder)
    figure = choose_figure(runs, figure)
    known = {key for run in runs for key in run.settings}
    if wrong := [key for key in settings if key not in known]:
        raise ConfigError(f"--settings {key}: no run has it; {nearest(key, known)}" for key in wrong)
    keys = sorted(differing(runs), key=derived)
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
    _show_means(runs, values, figure, shown)
    if rest := [key for key in dict.fromkeys([*shown, *keys]) if key not in in_table]:
        say(f"{len(rest)} more settings differ (--settings KEY,... chooses): {', '.join(rest)}")
    draw(runs, values, shown, figure, title, file)
    say(f"Wrote {file}")
    return file


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
    left, shown = get_console().width - 1 - sum(_width(*each) for each in columns.items()), []
    for key, heading in headings(keys).items():
        cells = shorts([run.settings.get(key, ABSENT) if run.settings else "?" for run in runs], _CELL)
        if (width := _width(heading, cells)) <= left:
            left -= width
            columns[heading] = cells
            shown.append(key)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in columns:
        table.add_column(escape(heading), overflow="fold", justify="right" if heading in numbers.values() else "left")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    get_console().print(table)
    return shown


def _width(heading: str, cells: Sequence[str]) -> int:
    """With what SIMPLE_HEAD puts between columns. The table has one character more at its end."""
    return 3 + max(map(len, (heading, *cells)))


def _show_means(runs: Sequence[RunFiles], values: dict[str, float], figure: str, keys: Sequence[str]) -> None:
    """A line a setting: the mean of the figure for each of its values, over all else that was varied with it."""
    there = [run for run in runs if run.name in values and run.settings]
    for key in keys:
        given = [run.settings.get(key, ABSENT) for run in there]
        groups: dict[str, list[float]] = {}
        in_order = sorted(zip(map(_order, given), shorts(given, 28), there, strict=True), key=lambda each: each[0])
        for _, text, run in in_order:
            groups.setdefault(text, []).append(values[run.name])
        if 1 < len(groups) < len(there):
            means = [f"{name}: {count(mean(each), 4)} (of {len(each)})" for name, each in groups.items()]
            say(f"{key}, mean {figure}: " + "; ".join(means[:_MEANS]) + ("; ..." if len(means) > _MEANS else ""))


def _order(value: Any) -> tuple[bool, float, str]:
    """A key to sort by: numbers by size, then everything else by its text."""
    number = is_finite(value)
    return not number, float(value) if number else 0.0, str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillm.compare", description="What each setting did.")
    parser.add_argument("runs_dir", type=Path, help="a sweep's directory, or any with runs in it")
    parser.add_argument("--metric", help="of metrics.json, such as val/rouge_l; default: what the sweep optimised")
    parser.add_argument("--settings", default="", help="keys to show, with commas; default: the first that differ")
    parser.add_argument("--out", type=Path, help="of the picture; default: RUNS_DIR/compare.png")
    given = parser.parse_args()
    compare(given.runs_dir, given.metric, [key for key in given.settings.split(",") if key], given.out)


if __name__ == "__main__":
    cli.run(main, "train")
