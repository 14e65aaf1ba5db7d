"""What a person sees in the terminal: one shared console, tables of figures and of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import track
from rich.table import Table


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


def batches(rows: Iterable, size: int, title: str) -> Iterator[list]:
    """Rows in batches, with a progress bar in a terminal, without an end where their number is unknown."""
    console, stream = get_console(), iter(rows)
    parts = iter(lambda: list(islice(stream, size)), [])
    total = -(-len(rows) // size) if isinstance(rows, Sized) else None
    silent = console.quiet or not console.is_terminal
    return iter(track(parts, escape(title), total, console=console, transient=True, disable=silent))
