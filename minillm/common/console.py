"""What a person sees in the terminal: one shared console, tables of figures and of samples, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table

from minillm.common.numbers import duration
from minillm.common.ranks import rank

Row = TypeVar("Row")
_SOON, _OFTEN = 2.0, 60.0  # seconds until a bar is shown, and between two lines where there is no terminal


def show_figures(title: str, rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> None:
    """A table with a line for each of `rows`; `columns` maps a figure's name to its heading; those without a
    value are left out."""
    columns = {key: heading for key, heading in columns.items() if any(key in row for row in rows.values())}
    caption = "KL in nats, a token unless it says a byte"
    table = Table(title=title, title_justify="left", caption=caption, box=SIMPLE_HEAD)
    table.add_column("", overflow="fold", min_width=12)
    for heading in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in rows.items():
        values = [figures.get(key) for key in columns]
        texts = ("-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") for value in values)
        table.add_row(escape(name), *texts)
    get_console().print(table)


def show_samples(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 400) -> None:
    """Each row as a small block of named texts; a text is cut at `width` characters. Markup in a text stays text."""
    console = get_console()
    console.print(f"[bold]{escape(title)}[/bold]")
    for row in rows:
        for name, text in zip(columns, row, strict=True):
            text = " ".join(text.split())
            shown = text if len(text) <= width else text[:width] + " ..."
            console.print(f"  [bold]{name:>8}[/bold]  {escape(shown)}", highlight=False)
        console.print()


def show_facts(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], lines: Sequence[tuple[str, str]]
) -> None:
    """Named `rows` of texts, one under each of `columns`, then named lines of text; long texts fold. Markup is text."""
    console = get_console()
    console.print(f"[bold]{escape(title)}[/bold]")
    width = max(len(name) for name, _ in (*rows, *lines))
    blocks = [[("", columns), *rows]] if rows else []
    for block in [*blocks, *([(name, [text])] for name, text in lines)]:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=width, style="bold", overflow="fold")
        for _ in block[0][1]:
            grid.add_column(overflow="fold")
        for name, texts in block:
            grid.add_row(f"  {escape(name)}", *map(escape, texts))
        console.print(grid)


def say(text: str) -> None:
    """One line, markup taken literally; only a terminal folds it. It is seen at once in a file too."""
    console = get_console()
    console.print(escape(text), highlight=False, soft_wrap=not console.is_terminal)
    console.file.flush()


@contextmanager
def progress(title: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Around work that may take long: yields a function that takes how much of `total` is done. On a terminal there is
    a bar with the time left after a few seconds, and at once without a `total`; elsewhere a line a minute. Only the
    first of several processes shows it."""
    console, began, bar = get_console(), time.monotonic(), None
    silent, said = console.quiet or rank() > 0, began

    def advance(done: float) -> None:
        nonlocal bar, said
        now = time.monotonic()
        left = f"about {duration((now - began) * max(0.0, total / done - 1), 2)} left" if total and done else ""
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, left=left)
        elif not silent and console.is_terminal and (total is None or now - began > _SOON):
            columns = *Progress.get_default_columns()[:3], TextColumn("{task.fields[left]}")
            bar = Progress(*columns, console=console, transient=True)
            bar.add_task(escape(title), total=total, completed=done, left=left)
            bar.start()
        elif not silent and left and now - said > _OFTEN:
            said = now
            say(f"{title}: {min(1.0, done / total):.0%}, {left}")

    try:
        if total is None:
            advance(0.0)
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def tracked(rows: Iterable[Row], title: str) -> Iterator[Row]:
    """The rows, with the `progress` of the loop over them."""
    rows = list(rows)
    with progress(title, len(rows)) as advance:
        for done, row in enumerate(rows, start=1):
            yield row
            advance(done)
