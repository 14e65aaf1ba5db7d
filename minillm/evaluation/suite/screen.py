"""What a person sees at the end: tables in the layout of the paper's Table 1, in 80 columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import islice
from statistics import mean

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from minillm.common.console import say
from minillm.common.labels import file_labels, folded
from minillm.evaluation.rows import figure_rows, files_of

_NAME, _CELL, _NARROW = 20, 12, 6  # columns of a name and of a figure with and without its interval
Columns = Mapping[str, Mapping[str, str]]  # cells by heading, then by model


def show_results(results: dict) -> None:
    """All tables of what metrics.json holds."""
    rows, names = figure_rows(results), {source: each["label"] for source, each in results["models"].items()}
    short, n = file_labels(files_of(results)), len(results["settings"]["seeds"])

    def by_file(found: list[dict]) -> Columns:
        return _columns(found, lambda row: short[row["file"]], _cell)

    for decoding in results["answers"]:
        own = [row for row in rows if row.get("decoding") == decoding]
        title = f"Rouge-L, decoding {decoding}: {f'mean ± deviation of {n} seeds' if n > 1 else 'one seed'}"
        _show(f"{title} [95% interval]", names, by_file([row for row in own if row["figure"] == "rouge_l"]))
        title = f"Other figures, decoding {decoding}: mean of the data sets that have them"
        _show(title, names, _means(results, own, first=decoding == next(iter(results["answers"]))), _NARROW)
    students = {source: name for source, name in names.items() if source != results["teacher"]}
    title = "Exposure bias: ExAccErr in % at the last length with a value [95% interval]"
    columns = {short[file]: {} for file in results["exposure"]}  # also where no length has a value
    _show(title, students, columns | by_file([row for row in rows if row["figure"].startswith("exposure_bias@")]))
    headings = {"ece": "ECE", "accuracy": "accuracy"}
    tasks = [row for row in rows if row["figure"] in headings]
    columns = _columns(tasks, lambda row: f"{row['file']}\n{headings[row['figure']]}", lambda row: _cell(row, 3))
    _show("Calibration, zero shot [95% interval]", names, columns)
    for note in results["notes"]:
        say(f"NOTE: {note}")


def _columns(rows: list[dict], heading: Callable[[dict], str], cell: Callable[[dict], str]) -> Columns:
    columns = defaultdict(dict)
    for row in rows:
        columns[heading(row)][row["source"]] = cell(row)
    return columns


def _means(results: dict, rows: list[dict], first: bool) -> Columns:
    """Means over the data sets of the figures with a heading; the loss on references in the first decoding alone."""
    facts = {key: (each["heading"], each["digits"]) for key, each in results["figures"].items() if each["heading"]}
    facts |= {"reference_loss": ("ref.\nloss", 3)} if first else {}
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["figure"] in facts and row["figure"] != "rouge_l" and row["mean"] is not None:
            found[row["figure"]][row["source"]].append(row["mean"])
    return {
        heading: {source: f"{mean(values):.{digits}f}" for source, values in found[key].items()}
        for key, (heading, digits) in facts.items()
        if key in found
    }


def _cell(row: dict, digits: int = 1) -> str:
    if row["mean"] is None:
        return "-"
    deviation = "" if row.get("deviation") is None else f" ± {row['deviation']:.{digits}f}"
    length = row["figure"].partition("@")[2]
    ends = ", ".join(f"{row[end]:.{min(digits, 2)}f}" for end in ("low", "high"))
    return f"{row['mean']:.{digits}f}{deviation}{f' at {length}' if length else ''}\n[{ends}]"


def _show(title: str, names: Mapping[str, str], columns: Columns, width: int = _CELL) -> None:
    """As many columns side by side as fit, the rest below; nothing without columns."""
    left = iter(columns.items())
    if columns:
        get_console().print(f"[bold]{escape(title)}[/bold]", highlight=False)
    while part := list(islice(left, max(1, (get_console().width - _NAME) // (width + 2)))):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", overflow="fold")
        for heading, _ in part:
            lines = (folded(line, width) for line in heading.split("\n"))
            table.add_column(escape("\n".join(lines)), justify="right", overflow="fold")
        for source, name in names.items():
            table.add_row(escape(folded(name, _NAME)), *(escape(column.get(source, "-")) for _, column in part))
        get_console().print(table)
