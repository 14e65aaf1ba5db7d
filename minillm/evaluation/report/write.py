"""From a run directory to report/: index.html, a PNG of each plot, table.csv, table.tex; to W&B where it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from minillm.common.changes import flat
from minillm.common.console import say
from minillm.common.errors import StorageError
from minillm.common.files import write_whole
from minillm.common.labels import seed_name
from minillm.common.loggers import wandb_logger
from minillm.common.numbers import is_finite
from minillm.common.read import RunFiles
from minillm.evaluation.metrics.figures import FIGURES
from minillm.evaluation.report.page import page_of
from minillm.evaluation.report.panels import CURVES, Panel, Section, learning_curves, overview
from minillm.evaluation.report.plots import MARKS, slot
from minillm.evaluation.report.published import ROWS, SETS, set_of
from minillm.evaluation.report.rows import table_rows, to_csv
from minillm.evaluation.report.samples import samples_of
from minillm.evaluation.report.sections import sections_of
from minillm.evaluation.report.source import Evaluation, Training, read_folder
from minillm.evaluation.report.tables import table_of, to_latex

_VALIDATED = {figure.key: figure.name for figure in FIGURES} | {"loss": "Loss on references, nats a token"}
_COUNTS = ("tokens", "uniform")  # of a validation; not its figures
_STAGES = {"_raw": "as given", "_start": "after the start", "": "at the end"}


def write_report(run_dir: Path, *, wandb: bool = False) -> Path:
    """Write `run_dir`/report/ of an evaluation or a training run; the path of its index.html.

    Raises:
        DataError: nothing to report on, or a file of it is broken. StorageError: the report cannot be written.
    """
    source = read_folder(run_dir)
    folder = run_dir / "report"
    try:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        make: Callable = _evaluation if isinstance(source, Evaluation) else _training
        values, table, latex = make(source, folder)
        write_whole(folder / "table.csv", to_csv(*table))
        if latex:
            write_whole(folder / "table.tex", latex)
        page = folder / "index.html"
        panels = values["panels"] + [panel for section in values["sections"] for panel in section.panels]
        values["data"] |= {"plots": {panel.name: panel.curves for panel in panels if panel.curves}}
        write_whole(page, page_of(**values, samples=samples_of(source)))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error})") from error
    if wandb:
        _log(run_dir, values["settings"], table, panels)
    say(f"Wrote {page}")
    return page


def _evaluation(source: Evaluation, folder: Path) -> tuple[dict, tuple, str]:
    metrics = source.metrics
    settings = metrics.get("settings") or {}
    cells = {key for each in table_of(source)["cells"].values() for key in each}
    first = next((key for key in source.figures if key in cells), None)
    values = {
        "title": source.folder.resolve().name,
        "kind": "Evaluation",
        "facts": {
            "Teacher": next(
                (model.label for model in source.models if model.role == "teacher"), metrics.get("teacher")
            ),
            "Models": len(source.models),
            "Data sets": len(source.files),
            "Decoding": ", ".join(source.decodings),
            "Seeds": ", ".join(map(seed_name, settings.get("seeds") or [])),
            "Answers": f"{source.n_answers:,}",
            "Take care": "; ".join(metrics.get("notes") or []),
        },
        "legend": [
            {
                "label": m.label,
                "slot": slot(m.style),
                "mark": MARKS[m.style % len(MARKS)],
                "parameters": _count(m.parameters),
            }
            for m in source.models
        ],
        "panels": overview(source, folder, first) if first else [],
        "sections": sections_of(source, folder),
        "data": {"table": table_of(source)} if first else {},
        "published": _published(source),
        "settings": settings,
        "settings_text": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "intro": intro(source),
        "coloured": bool(source.tokens),
    }
    return values, table_rows(source), to_latex(source)


def intro(source: Evaluation) -> str:
    """The sentence above the samples; it says how many answers the page holds where it does not hold all."""
    text = "The same prompt answered by each model."
    if len(source.answers) == source.n_answers:
        return text
    return (
        f"{text} The first {source.shown} prompts of each data set, {len(source.answers):,} of {source.n_answers:,} "
        "answers, so that the page stays small enough to open; all are in answers.jsonl."
    )


def _own_figures(run: RunFiles) -> list[str]:
    """Figures of a validation that are not of the package."""
    keys = dict.fromkeys(key.removeprefix("val/") for row in run.rows for key in row if key.startswith("val/"))
    return [key for key in keys if key not in (*_VALIDATED, *_COUNTS)]


def _training(source: Training, folder: Path) -> tuple[dict, tuple, str]:
    run = source.run
    steps = int(run.rows[-1]["progress/optimizer_step"])
    validated = _VALIDATED | {key: key for key in _own_figures(run)}
    bare = [key for key in validated if any(f"val/{key}{suffix}" in run.figures for suffix in _STAGES)]
    stages = [suffix for suffix in _STAGES if any(f"val/{name}{suffix}" in run.figures for name in bare)]
    columns = ["figure", *(_STAGES[suffix] for suffix in stages), "best", "teacher"]
    rows = [
        [
            validated[name],
            *(_number(run.figures.get(f"val/{name}{suffix}")) for suffix in stages),
            _number(run.figures.get(f"best/{name}")),
            _number(run.figures.get(f"val/teacher_{name}")),
        ]
        for name in bare
    ]
    text = (
        "Figures of the held-out prompts and of training, by optimizer step; those of the supervised start come first."
    )
    panels = learning_curves({run.name: (1, run)}, folder, [*CURVES, *(f"val/{key}" for key in _own_figures(run))])
    curves = Section("curves", "Learning curves", text, {"": panels}, legend=False)
    facts = {"State": run.state, "Optimizer steps": f"{steps:,}"}
    if "best/step" in run.figures:
        facts["Best step"] = _number(run.figures["best/step"])
    for key in ("model.student.source", "model.teacher.source", "seed"):
        if run.settings.get(key) is not None:
            facts[key.removeprefix("model.").removesuffix(".source").capitalize()] = str(run.settings[key])
    if run.note:
        facts["Note"] = run.note
    final = Section("figures", "Validation", "The held-out prompts at each stage of the run.", table=(columns, rows))
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    values = {
        "title": run.folder.resolve().name,
        "kind": "Training run",
        "facts": facts,
        "legend": [],
        "panels": [],
        "sections": [*([final] if rows else []), curves],
        "data": {},
        "published": None,
        "settings": run.settings,
        "settings_text": "".join(f"{key}: {value}\n" for key, value in flat(run.settings).items()),
        "intro": "The same held-out prompt, answered at stages of the run.",
        "coloured": False,
    }
    return values, (names, [[row.get(name) for name in names] for row in run.rows]), ""


def _published(source: Evaluation) -> dict:
    """The paper's rows, and what of ours stands beside its test sets."""
    found = {name: [short for file, short in source.files.items() if set_of(file) == name] for name in SETS}
    rows = [[f"{row.family} {row.size}", row.method, *(f"{value:.1f}" for value in row.values)] for row in ROWS]
    return {
        "columns": ["model", "method", *SETS],
        "rows": rows,
        "ours": ["", "our file", *(", ".join(found[name]) or "–" for name in SETS)],
        "comparable": any(table_of(source)["published"]),
    }


def _log(run_dir: Path, settings: dict, table: tuple, panels: list[Panel]) -> None:
    logger = wandb_logger(run_dir=run_dir, name=run_dir.resolve().name, settings=settings, without="wandb=false")
    columns, rows = table
    logger.log_table("report/table", columns=columns, data=[[*map(_cell, row)] for row in rows])
    for panel in panels:
        logger.log_image(f"report/{panel.name}", [str(panel.png)], caption=[panel.title])
        logger.log_table(f"report/{panel.name}_numbers", columns=panel.columns, data=panel.rows)
    logger.experiment.finish()


def _cell(value: object) -> object:
    return float(value) if isinstance(value, int) else value  # one type a column


def _count(number: int | None) -> str:
    if not number:
        return ""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number:,}"


def _number(value: object) -> str:
    return f"{value:.4g}" if is_finite(value) else "–"
