"""From a run directory to report/: index.html, plots/ with a PNG of each plot, table.csv; to W&B where it is wanted."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from minillm.common.console import say
from minillm.common.errors import StorageError
from minillm.common.files import whole_directory, write_whole
from minillm.common.labels import without_places
from minillm.common.wandb import wandb_logger
from minillm.evaluation.report.plots import Panel, slot
from minillm.evaluation.report.sections import overview, sections_of
from minillm.evaluation.report.source import Evaluation, Training, read_folder, whole_characters
from minillm.evaluation.report.tables import Table, long_table, published_table, results, rows_table
from minillm.evaluation.report.training import number_of, steps_of, training_sections

HERE = Path(__file__).parent
_ANSWER = (
    "model", "file", "id", "decoding", "seed", "answer", "truncated", "n_tokens", "reverse_kl", "rouge_l", "exact_match"
)  # fmt: skip


def write_report(run_dir: Path, *, wandb: bool = False, so_far: Mapping[str, float] | None = None) -> Path:
    """Write `run_dir`/report/ of an evaluation or a training run; the path of its index.html.

    Args:
        so_far: what metrics.json of a run at work would hold. Then there is the page alone, without PNGs.

    Raises:
        DataError: nothing to report on. StorageError: the report cannot be written.
    """
    source = read_folder(run_dir)
    if so_far is not None:
        source = replace(source, run=replace(source.run, figures=dict(so_far)))
    for note in source.notes:
        say(f"WARNING: {note}")
    values = {"source": source, "title": run_dir.resolve().name, "samples": samples_of(source), "overview": []}
    values |= {"whole": so_far is None, "now": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    if isinstance(source, Evaluation):
        settings, table, shown = source.metrics.get("settings", {}), long_table(source), results(source)
        values |= {"sections": sections_of(source), "published": published_table(source.files)}
        if shown["figures"]:
            values["overview"] = overview(source, shown["figures"][0]["key"])
    else:
        settings, table, shown = source.run.settings, rows_table(source.run.rows), None
        values |= {"sections": training_sections(source.run), "steps": steps_of(source.run)}
    panels = [*values["overview"]]
    panels += [panel for section in values["sections"] for group in section.groups.values() for panel in group]
    names = Counter()
    for panel in panels:
        names[panel.name] += 1
        panel.name += f"-{names[panel.name]}" * (names[panel.name] > 1)
    folder, plots = run_dir / "report", run_dir / "report" / "plots"
    try:
        if folder.is_symlink() or plots.is_symlink():
            raise OSError("it is a symbolic link, or plots/ in it is one; remove it")
        folder.mkdir(exist_ok=True)
        if so_far is None:
            with whole_directory(plots) as aside:
                for panel in panels:
                    (aside / f"{panel.name}.png").write_bytes(panel.png())
        write_whole(folder / "table.csv", table.to_csv())
        data = {"table": shown, "plots": {panel.name: panel.curves for panel in panels if panel.curves}}
        write_whole(folder / "index.html", _page(**values, data=data, settings=without_places(_yaml(settings))))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error})") from error
    if wandb:
        _log(run_dir, settings, table, {plots / f"{panel.name}.png": panel for panel in panels})
    if so_far is None:
        say(f"Wrote {folder / 'index.html'}")
    return folder / "index.html"


def samples_of(source: Evaluation | Training) -> dict:
    """As samples.js reads them, each prompt once, and of an answer what is shown. models: label, and slot of
    its colour; files: their short names; prompts, answers and tokens by the names that they have in the files of
    the run."""
    files, prompts = dict(source.files), {}
    models = {each.source: each.label for each in source.models}

    def shown(row: dict, *keys: str) -> dict:
        own = {"id": without_places(row["id"]), "file": files[row["file"]], "model": models.get(row.get("model"))}
        return {key: own.get(key, row[key]) for key in keys}

    for row in source.answers:
        files.setdefault(row["file"], without_places(row["file"]))
        prompt = shown(row, "file", "id", "prompt") | {"references": row.get("references") or []}
        prompts.setdefault((row["file"], row["id"]), prompt)
    return {
        "models": [{"label": each.label, "slot": slot(each.style)} for each in source.models],
        "files": list(files.values()),
        "prompts": list(prompts.values()),
        "answers": [shown(row, *(name for name in _ANSWER if row.get(name) is not None)) for row in source.answers],
        "tokens": [shown(row, *row) for row in source.tokens if (row["file"], row["id"]) in prompts],
    }


def _page(**values) -> str:
    """page.html filled in. All text is escaped; `data` and `samples` become JSON, in which nothing can end the script
    element that holds it."""
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "samples.js"))
    # The browser runs this script alone, even if a text were to become markup.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    pages.filters |= {"slot": slot, "number": number_of, "portable": without_places}
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    page = pages.get_template("page.html").render(**values, style=style, script=Markup(script), digest=digest)
    return whole_characters(page.lstrip())


def _yaml(settings: dict) -> str:
    try:
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    except RecursionError:
        return "nested too deeply to be shown\n"


def _log(run_dir: Path, settings: dict, table: Table, plots: dict[Path, Panel]) -> None:
    logger = wandb_logger(run_dir=run_dir, name=run_dir.resolve().name, settings=settings, without="wandb=false")
    rows = [[float(cell) if isinstance(cell, int) else cell for cell in row] for row in table.rows]  # one type a column
    logger.log_table("report/table", columns=table.columns, data=rows)
    for file, panel in plots.items():
        logger.log_image(f"report/{panel.name}", [str(file)], caption=[panel.title])
        logger.log_table(f"report/{panel.name}_numbers", columns=panel.numbers.columns, data=panel.numbers.rows)
    logger.experiment.finish()
