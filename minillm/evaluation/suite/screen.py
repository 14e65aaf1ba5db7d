"""What a person sees: how far the work is, then tables in the layout of the paper's Table 1, in 80 columns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import mean

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from minillm.common.console import say
from minillm.common.labels import file_labels, folded, labels, seed_name
from minillm.common.numbers import duration
from minillm.evaluation.metrics import FIGURES
from minillm.evaluation.suite.settings import Suite
from minillm.evaluation.suite.units import Unit

_NAME, _CELL = 20, 12  # columns of a name and of a figure, where words allow it


class Progress:
    """A bar in a terminal, a line a unit elsewhere; `total` and `done` of this process."""

    def __init__(self, suite: Suite, total: int, done: int):
        files = [*suite.records, *suite.tasks]
        self._names = labels(suite.models) | file_labels(files)
        self._total, self._first, self._done = total, done, done
        self._began = self._last = time.monotonic()
        self._title, self._bars = "", None
        if done:
            say(f"{done} of {total} units of work are already there.")
        if get_console().is_terminal and not get_console().quiet:
            columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bars = Bars(*columns, console=get_console(), transient=True)
            self._bar = self._bars.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, what: Unit | str) -> None:
        self._title = what if isinstance(what, str) else self._of(what)
        self._last = time.monotonic()
        if self._bars:
            self._bars.update(self._bar, description=f"{self._left()}  {escape(self._title)}")

    def end(self) -> None:
        self._done += 1
        if self._bars:
            self._bars.update(self._bar, completed=self._done)
        else:
            seconds, left = time.monotonic() - self._last, self._left()
            say(f"[{self._done}/{self._total}] {self._title}: {duration(seconds)}{', ' * bool(left)}{left}")

    def _left(self) -> str:
        made = self._done - self._first
        if not made or self._done == self._total:
            return ""
        minutes = (time.monotonic() - self._began) / made * (self._total - self._done) / 60
        return f"{minutes:.0f} min left" if minutes >= 1 else "< 1 min left"

    def _of(self, unit: Unit) -> str:
        parts = [unit.kind, self._names.get(unit.source, unit.source), self._names.get(unit.of, unit.of), unit.decoding]
        if unit.kind == "judge":
            parts.append(f"seed {seed_name(unit.seed)}")
        return " ".join(filter(None, parts))


def show_results(results: dict) -> None:
    """All tables of what metrics.json holds."""
    names = {source: each["label"] for source, each in results["models"].items()}
    for decoding, files in results["answers"].items():
        short = file_labels(list(files))
        n = min(len(each["per_seed"]) for by_model in files.values() for row in by_model.values()
                for each in row["figures"].values())  # fmt: skip
        seeds = f"mean ± deviation of {n} seeds" if n > 1 else "one seed"
        rouge = {
            short[file]: {source: row["figures"].get("rouge_l") for source, row in by_model.items()}
            for file, by_model in files.items()
        }
        if any(each for column in rouge.values() for each in column.values()):
            title = f"Rouge-L, decoding {decoding}: {seeds} [95% interval]"
            _show(title, names, {name: {k: _cell(v) for k, v in column.items()} for name, column in rouge.items()})
        columns = {
            figure["heading"]: {source: _mean_of(files, source, key, figure["digits"]) for source in names}
            for key, figure in (results.get("figures") or {each.key: each.facts() for each in FIGURES}).items()
            if key != "rouge_l" and figure["heading"]
        }
        losses = results["reference_loss"]
        if losses and decoding == next(iter(results["answers"])):
            columns["ref.\nloss"] = {source: _number(_mean(
                by_model[source]["mean"] for by_model in losses.values() if source in by_model), 3) for source in names
            }  # fmt: skip
        columns = {
            heading: column for heading, column in columns.items() if any(text != "-" for text in column.values())
        }
        title = f"Other figures, decoding {decoding}: mean of the data sets that have them"
        _show(title, names, columns, cell=6)
    if results["exposure"]:
        short = file_labels(list(results["exposure"]))
        columns = {
            short[file]: {source: _excess(by_model.get(source)) for source in names if source != results["teacher"]}
            for file, by_model in results["exposure"].items()
        }
        students = {source: name for source, name in names.items() if source != results["teacher"]}
        _show("Exposure bias: ExAccErr in % at the last length with a value [95% interval]", students, columns)
    if results["calibration"]:
        columns = {
            f"{task}\n{heading}": {source: _with_interval(each, key) for source, each in by_model.items()}
            for task, by_model in results["calibration"].items()
            for key, heading in (("ece", "ECE"), ("accuracy", "accuracy"))
        }
        _show("Calibration, zero shot [95% interval]", names, columns)
    for decoding, files in results.get("judge", {}).items():
        columns = {
            name.replace("_", "\n"): {
                source: str(sum(by_model[source][name] for by_model in files.values() if source in by_model))
                for source in names
            }
            for name in ("items", "rated", "malformed", "failed", "malformed_replies")
        }
        _show(f"Answers given to the judge, decoding {decoding}, all data sets", names, columns)
    for note in results.get("notes", []):
        say(f"NOTE: {note}")


def _show(title: str, names: Mapping[str, str], columns: Mapping[str, Mapping[str, str]], cell: int = _CELL) -> None:
    """As many columns side by side as there is room for, the rest below."""
    width = get_console().width
    rows = {source: folded(name, _NAME) for source, name in names.items()}
    first = max((len(line) for name in rows.values() for line in name.split("\n")), default=0)
    get_console().print(f"[bold]{escape(title)}[/bold]", highlight=False)
    for part in _parts(columns, width - first - 2, cell):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", no_wrap=True)
        for heading in part:
            table.add_column(escape(heading), justify="right", no_wrap=True)
        for source, name in rows.items():
            table.add_row(escape(name), *(escape(columns[key].get(source, "-")) for key in part.values()))
        get_console().print(table)


def _parts(columns: Mapping[str, Mapping[str, str]], room: int, cell: int) -> list[dict[str, str]]:
    """Headings, folded, with their keys, in tables that fit."""
    parts: list[dict[str, str]] = []
    left = 0
    for key, values in columns.items():
        heading = "\n".join(folded(line, cell) for line in key.split("\n"))
        needed = 2 + max(len(line) for text in (heading, *values.values()) for line in text.split("\n"))
        if not parts or needed > left:
            parts.append({})
            left = room
        parts[-1][heading] = key
        left -= needed
    return parts


def _cell(spread: dict | None) -> str:
    if spread is None or spread["mean"] is None:
        return "-"
    deviation = "" if spread["deviation"] is None else f" ± {spread['deviation']:.1f}"
    return f"{spread['mean']:.1f}{deviation}\n[{spread['low']:.1f}, {spread['high']:.1f}]"


def _with_interval(calibration: dict, key: str) -> str:
    low, high = calibration[f"{key}_interval"]
    return f"{calibration[key]:.3f}\n[{low:.2f}, {high:.2f}]"


def _excess(exposure: dict | None) -> str:
    lengths = [at for at, value in enumerate(exposure["excess"] if exposure else ()) if value is not None]
    if not lengths:
        return "-"
    at = lengths[-1]
    return f"{exposure['excess'][at]:.1f} at {at + 1}\n[{exposure['low'][at]:.1f}, {exposure['high'][at]:.1f}]"


def _mean_of(files: Mapping[str, dict], source: str, figure: str, digits: int) -> str:
    found = [
        row["figures"][figure]["mean"] for by_model in files.values() if figure in (row := by_model[source])["figures"]
    ]
    return _number(_mean(found), digits)


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return mean(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
