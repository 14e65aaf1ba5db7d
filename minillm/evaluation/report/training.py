"""The page of a training run, of one at work too: the validation at each stage, and curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from minillm.common.numbers import count, is_finite
from minillm.common.read import STEP, RunFiles
from minillm.evaluation.metrics.figures import FIGURES
from minillm.evaluation.report.plots import Series, line_panel
from minillm.evaluation.report.sections import Section
from minillm.evaluation.report.source import LARGEST
from minillm.evaluation.report.tables import Table, rows_table

NAMES = {figure.key: figure.name for figure in FIGURES} | {"loss": "Loss on references, nats a token"}
CURVES = yaml.safe_load(Path(__file__).with_name("curves.yaml").read_text(encoding="utf-8"))
_COUNTS = ("tokens", "uniform", "teacher_entropy")  # of a validation; not its figures, or in another's plot
_STAGES = {"_raw": "raw", "_start": "start", "": "last"}


def steps_of(run: RunFiles) -> tuple[int, int]:
    """Optimizer steps of the supervised start, and those made behind it, below 0 before its end. metrics.csv counts
    both as one."""
    start, last = run.settings.get("start.steps"), [row[STEP] for row in run.rows if _shown(row[STEP])]
    start = int(start) if is_finite(start) else 0
    return start, int(last[-1] if last else 0) - start


def training_sections(run: RunFiles) -> list[Section]:
    """The validation at each stage, and all curves."""
    found = [name.removeprefix("val/") for name in rows_table(run.rows).columns if name.startswith("val/")]
    names = NAMES | {key: key for key in found if key not in (*NAMES, *_COUNTS)}
    stages = [stage for stage in _STAGES if any(f"val/{key}{stage}" in run.figures for key in names)]
    rows = []
    for key, name in names.items():
        values = [run.figures.get(f"val/{key}{stage}") for stage in stages]
        if any(value is not None for value in values):
            others = (run.figures.get(f"best/{key}"), run.figures.get(f"val/teacher_{key}"))
            rows.append([name, *map(number_of, (*values, *others))])
    table = Table(["figure", *(_STAGES[stage] for stage in stages), "best", "teacher"], rows)
    there = {key for titles in CURVES.values() for figures in titles.values() for key in figures}
    own = {f"Validation: {names[key]}": {f"val/{key}": "student"} for key in found if key in names}
    own = {title: figures for title, figures in own.items() if not there & figures.keys()}
    return [*([Section("figures", {}, table)] if rows else []), _curves(run, CURVES | {"Other figures": own})]


def _curves(run: RunFiles, headings: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Section:
    """A plot for each title that the run has; what never changes is a line of text."""
    groups, lines, start = {heading: [] for heading in headings}, [], steps_of(run)[0]
    for heading, title, figures in (
        (h, title, each) for h, titles in headings.items() for title, each in titles.items()
    ):
        series = []
        for number, (figure, name) in enumerate(figures.items(), 1):
            points = [(x - start, y, None, None) for x, y in run.curve(figure) if _shown(x) and _shown(y)]
            series += [Series(name, 0 if name == "teacher" else number, points)] if points else []
        if any(len({y for _, y, _, _ in each.points}) > 1 for each in series):
            marked = title.startswith("Validation")
            groups[heading] += line_panel(("curve", title, ""), "optimizer step", series, marked=marked)
            continue
        for each in series:
            what = "constant at" if len(each.points) > 1 else "one value so far,"
            lines.append(f"{title}{f' ({each.name})' * (len(series) > 1)}: {what} {count(each.points[0][1], 4)}")
    return Section("curves", groups, lines=lines)


def _shown(value: float) -> bool:
    return abs(value) <= LARGEST  # no NaN either


def number_of(value: object) -> str:
    return count(value, 4) if is_finite(value) else "–"
