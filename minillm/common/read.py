"""Run directories as they lie on disk: settings, figures, curves and how far a run has come.

Another process may be writing there, or have been killed while it did: nothing here trusts a file to be whole.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.common.changes import flat
from minillm.common.errors import ConfigError, first_line
from minillm.common.stored import read_config

STEP = "progress/optimizer_step"  # a column of metrics.csv: the optimizer step of the row
SETTINGS = "settings.json"  # what minillm.generate or evaluate.py was begun with
TRIALS = ".trials"  # in the directory of a sweep: how each of its trials ended
ERROR = "error.txt"  # why a trial of a sweep failed
LOG = "screen.log"  # what a trial of a sweep wrote on screen
# Which way is better; of other figures nothing is known.
_HIGHER = dict.fromkeys(("rouge_l", "exact_match", "distinct_4"), True)
_HIGHER |= dict.fromkeys(("reverse_kl", "reverse_kl_sampled", "reverse_kl_per_byte", "dropped", "loss"), False)


@dataclass(frozen=True)
class RunFiles:
    """`settings` and `rows` (of metrics.csv) by full names; `state` is one of finished, failed and
    unfinished (being made, or killed); `note` says why it failed or what could not be read."""

    name: str
    folder: Path
    state: str
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    rows: tuple[dict[str, float], ...] = ()
    note: str = ""

    @classmethod
    def read(cls, folder: Path, name: str | None = None) -> RunFiles:
        """A file that cannot be read counts as empty and is named in `note`."""
        notes, found = [], []
        for read in (read_settings, read_figures):
            try:
                found.append(read(folder) or {})
            except ValueError as error:
                found.append({})
                notes.append(str(error))
        settings, figures = found
        state = "finished" if figures else "unfinished"
        if not figures and (folder / ERROR).exists():
            state = "failed"
            try:
                text = (folder / ERROR).read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                text = f"{folder / ERROR}: cannot be read ({error.strerror})"
            notes.append(text.partition("\n\n")[0].strip().removeprefix("Error: "))
        rows = tuple(read_rows(folder / "metrics.csv"))
        return cls(name or folder.name, folder, state, settings, figures, rows, "; ".join(notes))

    def curve(self, figure: str) -> list[tuple[float, float]]:
        """(optimizer step, value) of a figure, in order."""
        return [(row[STEP], row[figure]) for row in self.rows if figure in row]


def find_runs(folder: Path) -> list[Path]:
    """Run directories below `folder`, not what lies inside of one; `folder` itself if it is one."""
    if any((folder / name).exists() for name in ("config.yaml", ERROR, LOG)):
        return [folder]
    below = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    return [run for each in below for run in find_runs(each)]


def read_settings(folder: Path) -> dict[str, Any] | None:
    """config.yaml with dotted keys, or None where there is none. Raises ConfigError where it cannot be read."""
    file = folder / "config.yaml"
    return flat(read_config(file)) if file.exists() else None


def read_job_settings(folder: Path) -> dict[str, Any] | None:
    """settings.json, which minillm.generate and evaluate.py write as they begin, or None where there is none. Raises
    ConfigError: it is damaged."""
    return read_json(folder / SETTINGS, f"delete {folder} or choose another run.name")


def read_figures(folder: Path) -> dict[str, Any] | None:
    """metrics.json, which a run writes at its end, or None. Raises ConfigError: it is damaged."""
    return read_json(folder / "metrics.json", "delete it, and the run goes on")


def read_json(file: Path, remedy: str) -> dict[str, Any] | None:
    """A mapping in one of a run's own files, or None where there is none. Raises ConfigError with the remedy: it is
    damaged."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: damaged ({first_line(error)}); {remedy}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: damaged (got {type(found).__name__}, wanted values by name); {remedy}")
    return found


def read_rows(file: Path) -> Iterator[dict[str, float]]:
    """The rows of a metrics.csv that are whole, with the columns that they fill."""
    for row in whole_rows(file)[0]:
        yield {name: float(value) for name, value in row.items()}


def whole_rows(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The same as text, and the lines that are left out: broken ones, and the last one if it has no end (it may be
    half a number)."""
    try:
        *lines, rest = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return [], []
    columns = _fields(lines.pop(0)) if lines else []
    rows, left_out = [], [rest] * (rest != "")
    for line in filter(None, lines):
        fields = _fields(line)
        row = {name: value for name, value in zip(columns, fields, strict=False) if value}
        try:
            whole = len(fields) <= len(columns) and STEP in row and bool([float(value) for value in row.values()])
        except ValueError:
            whole = False
        (rows if whole else left_out).append(row if whole else line)
    return rows, left_out


def _fields(line: str) -> list[str]:
    if '"' not in line:
        return line.rstrip("\r").split(",") if line else []
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a field of more than 131 kB
        return []


def higher_is_better(figure: str) -> bool | None:
    """Whether more is better of a figure such as val/rouge_l or best/rouge_l; None where neither way is better."""
    bare = figure.rpartition("/")[2].removesuffix("_raw").removesuffix("_start").removeprefix("teacher_")
    return _HIGHER.get(bare)
