"""What a person sees: how far the work is, then tables in the layout of the paper's Table 1, in 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice
from statistics import mean
from typing import Any

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from minillm.common.console import say
from minillm.common.labels import file_labels, folded
from minillm.common.numbers import duration
from minillm.evaluation.suite.units import Unit

_NAME, _CELL, _NARROW = 20, 12, 6  # columns of a name and of a figure with and without its interval


class Progress:
    """The unit at work in a terminal, a line a finished unit elsewhere; `total` and `done` of this process."""

    def __init__(self, total: int, done: int):
        self._total, self._done = total, done
        self._shown = get_console().status("loading the models")
        self._in_terminal = get_console().is_terminal
        if done:
            say(f"{done} of {total} units of work are already there.")

    def __enter__(self) -> Progress:
        self._shown.start()
        return self

    def __exit__(self, *_) -> None:
        self._shown.stop()

    def begin(self, unit: Unit) -> None:
        self._unit, self._began = unit, time.monotonic()
        self._shown.update(escape(f"[{self._done}/{self._total}] {unit}"))

    def end(self) -> None:
        self._done += 1
        if not self._in_terminal:
            say(f"[{self._done}/{self._total}] {self._unit}: {duration(time.monotonic() - self._began)}")


def show_results(results: dict) -> None:
    """All tables of what metrics.json holds."""
    names = {source: each["label"] for source, each in results["models"].items()}
    for decoding, files in results["answers"].items():
        _show_answers(results, decoding, files, names)
    if results["exposure"]:
        students = {source: name for source, name in names.items() if source != results["teacher"]}
        title = "Exposure bias: ExAccErr in % at the last length with a value [95% interval]"
        _show(title, students, _by_file(results["exposure"], _excess))
    if results["calibration"]:
        columns = {
            f"{task}\n{heading}": {source: _with_interval(each, key) for source, each in by_model.items()}
            for task, by_model in results["calibration"].items()
            for key, heading in (("ece", "ECE"), ("accuracy", "accuracy"))
        }
        _show("Calibration, zero shot [95% interval]", names, columns)
    for note in results["notes"]:
        say(f"NOTE: {note}")


def _show_answers(results: dict, decoding: str, files: dict, names: dict[str, str]) -> None:
    figures = {file: {source: row["figures"] for source, row in by_model.items()} for file, by_model in files.items()}
    n = len(results["settings"]["seeds"])
    seeds = f"mean ± deviation of {n} seeds" if n > 1 else "one seed"
    if any("rouge_l" in own for by_model in figures.values() for own in by_model.values()):
        columns = _by_file(figures, lambda own: _cell(own.get("rouge_l")))
        _show(f"Rouge-L, decoding {decoding}: {seeds} [95% interval]", names, columns)
    found = {
        fact["heading"]: (fact["digits"], [
            {source: own[key] for source, own in by_model.items() if key in own} for by_model in figures.values()
        ]) for key, fact in results["figures"].items() if key != "rouge_l" and fact["heading"]
    }  # fmt: skip
    if decoding == next(iter(results["answers"])):
        found["ref.\nloss"] = (3, list(results["reference_loss"].values()))
    columns = {
        heading: {source: _mean_of(each, source, digits) for source in names}
        for heading, (digits, each) in found.items()
    }
    columns = {heading: column for heading, column in columns.items() if set(column.values()) != {"-"}}
    _show(f"Other figures, decoding {decoding}: mean of the data sets that have them", names, columns, _NARROW)


def _by_file(files: Mapping[str, dict], cell: Callable[[Any], str]) -> dict[str, dict[str, str]]:
    short = file_labels(list(files))
    return {short[file]: {source: cell(each) for source, each in found.items()} for file, found in files.items()}


def _show(title: str, names: Mapping[str, str], columns: Mapping[str, Mapping[str, str]], width: int = _CELL) -> None:
    """As many columns side by side as fit, the rest below."""
    get_console().print(f"[bold]{escape(title)}[/bold]", highlight=False)
    left = iter(columns.items())
    while part := list(islice(left, max(1, (get_console().width - _NAME) // (width + 2)))):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", overflow="fold")
        for heading, _ in part:
            lines = (folded(line, width) for line in heading.split("\n"))
            table.add_column(escape("\n".join(lines)), justify="right", overflow="fold")
        for source, name in names.items():
            table.add_row(escape(folded(name, _NAME)), *(escape(column.get(source, "-")) for _, column in part))
        get_console().print(table)


def _cell(spread: dict | None) -> str:
    if spread is None or spread["mean"] is None:
        return "-"
    deviation = "" if spread["deviation"] is None else f" ± {spread['deviation']:.1f}"
    return f"{spread['mean']:.1f}{deviation}\n[{spread['low']:.1f}, {spread['high']:.1f}]"


def _with_interval(calibration: dict, key: str) -> str:
    low, high = calibration[f"{key}_interval"]
    return f"{calibration[key]:.3f}\n[{low:.2f}, {high:.2f}]"


def _excess(exposure: dict) -> str:
    at = max((at for at, value in enumerate(exposure["excess"]) if value is not None), default=None)
    if at is None:
        return "-"
    return f"{exposure['excess'][at]:.1f} at {at + 1}\n[{exposure['low'][at]:.1f}, {exposure['high'][at]:.1f}]"


def _mean_of(by_file: list[dict], source: str, digits: int) -> str:
    means = [each[source]["mean"] for each in by_file if source in each]
    values = [value for value in means if value is not None]
    return f"{mean(values):.{digits}f}" if values else "-"
