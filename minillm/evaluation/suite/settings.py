"""From the config of evaluate.py to a checked `Suite`; all that can be known before a model is loaded is told first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from minillm.common.checks import collect, matches, value_problems
from minillm.common.errors import ConfigError, DataError, ModelError
from minillm.common.files import fingerprint
from minillm.common.labels import name_problems
from minillm.common.ranks import started_processes
from minillm.common.read import SETTINGS, read_job_settings
from minillm.common.secret import secret_problems
from minillm.data import Record, Sources, read_choices, read_records, training_keys
from minillm.evaluation.suite.early import model_problems
from minillm.evaluation.suite.grown import refused
from minillm.evaluation.suite.measures import Calibration, Measures, read_measures
from minillm.evaluation.suite.trained import template_notes
from minillm.models import Attention, Checkpoint, Dtype, choose_dtype, device_of
from minillm.parallel import agree, on_first

Found = TypeVar("Found")
_KINDS = {
    "teacher": str | None, "seeds": list[int | None], "max_new_tokens": int, "batch_size": int, "chunk": int,
    "limit": int | None, "dtype": Dtype, "attention": Attention, "device": Literal["auto", "cpu", "cuda"],
    "devices": int,
}  # fmt: skip
_POSITIVE = ("max_new_tokens", "batch_size", "chunk", "limit", "devices")
# What changes nothing that is measured: where, by how many, what is drawn of it, and how the judge is reached.
_FREE = ("run", "device", "devices", "report", "wandb")
_JUDGE = ("model", "options", "asks")


@dataclass(frozen=True)
class Suite:
    """What to measure, checked. `models`: rows in their order, the teacher first where it is one; `records` per file; a
    seed of None decodes greedily; `tasks`: those of calibration with their records; `settings` are of settings.json;
    `notes`: what a reader of the figures should know, see `template_notes`."""

    measures: Measures
    models: tuple[str, ...]
    teacher: str | None
    records: dict[str, list[Record]]
    tasks: dict[str, tuple[Calibration, list[Record]]]
    sources: Sources
    seeds: tuple[int | None, ...]
    max_new_tokens: int
    batch_size: int
    chunk: int
    dtype: torch.dtype
    attention: str
    device: torch.device
    devices: int
    run_dir: Path
    run_name: str
    settings: dict
    notes: tuple[str, ...] = ()


def check_suite(cfg: DictConfig) -> Suite:
    """Check settings, files, tokenizers and what the run's directory holds, before any model is loaded.

    Raises:
        ConfigError: everything that is wrong.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if secrets := secret_problems(plain):
        raise ConfigError(secrets)
    problems: list[str] = []
    data = dict(plain["data"])
    files = data.pop("files")
    sources = collect(problems, "data", data)
    measures, calibrations = read_measures(problems, plain["suite"])
    problems += [
        f"data.{key}: is for training; evaluate.py measures data.files"
        for key in training_keys(sources)
        if key != "max_response_tokens"  # of references, for their loss
    ]
    problems += name_problems(plain["run"]["name"]) + _value_problems(plain)
    run_dir = Path(plain["run"]["dir"])
    others = [name for name in ("metrics.json", "config.yaml", "units") if (run_dir / name).exists()]
    if others and not (run_dir / SETTINGS).exists():
        problems.append(
            f"run.name={plain['run']['name']}: {run_dir} already holds another run ({others[0]}); choose another name"
        )
    records = {}
    named = matches(files, list[str])
    if not named or not files or len({Path(file).expanduser().resolve() for file in files}) < len(files):
        problems.append(
            f"data.files={files!r}: wanted a list of different files, for example data.files=[builtin:validation]"
        )
    else:
        limit = plain["limit"] if matches(plain["limit"], int) else None
        found = {file: _try(problems, "data.files", read_records, file) for file in files}
        records = {file: rows[:limit] for file, rows in found.items() if rows}
    tasks = {}
    for name, task in calibrations.items():
        rows = task.file and _try(problems, f"suite.calibration.{name}.file", read_choices, task.file, task.task)
        if rows and measures:
            tasks[name] = (task, rows[: measures.calibration_limit])
    models, teacher = _rows(problems, plain, measures)
    if problems:
        raise ConfigError(problems)
    checkpoints = [*models] if teacher is None or teacher in models else [teacher, *models]
    lengths = {"max_new_tokens": plain["max_new_tokens"]}
    if measures.reference_loss:
        lengths["data.max_response_tokens"] = sources.max_response_tokens
    if problems := model_problems(checkpoints, teacher, sources, records, tasks, lengths):
        raise ConfigError(problems)
    before = read_settings(run_dir) or {"data": {}}
    for name in checkpoints:
        sources = agree(sources.begun(Checkpoint(name).peek()[1], before["data"].get("date")))
    plain["data"]["date"] = sources.date
    device = device_of(plain["device"])
    dtype = choose_dtype(plain["dtype"], device)
    task_files = [task.file for task, _ in tasks.values()]
    settings = _settings(plain, str(dtype), records, task_files, checkpoints)
    _refuse_another(settings, run_dir)
    return Suite(
        measures=measures, models=models, teacher=teacher, records=records, tasks=tasks, sources=sources,
        seeds=tuple(plain["seeds"]), dtype=dtype, device=device, run_dir=run_dir, run_name=plain["run"]["name"],
        settings=settings, notes=tuple(template_notes(checkpoints, plain["data"])),
        **{key: plain[key] for key in ("max_new_tokens", "batch_size", "chunk", "attention", "devices")},
    )  # fmt: skip


def _value_problems(plain: dict) -> list[str]:
    problems = value_problems(plain, _KINDS, _POSITIVE)
    seeds = plain["seeds"]
    if matches(seeds, list) and (not seeds or len(set(map(str, seeds))) < len(seeds)):
        problems.append(f"seeds={seeds}: wanted different integers, or [null] for greedy decoding")
    if matches(seeds, list) and None in seeds and len(seeds) > 1:
        problems.append(f"seeds={seeds}: null is greedy decoding and no seed; wanted integers, or [null] alone")
    gpus = torch.cuda.device_count()
    if plain["device"] == "cuda" and not gpus:
        problems.append("device=cuda: no GPU is seen here; use device=auto or cpu")
    ours = started_processes() == 1 and plain["device"] != "cpu" and matches(plain["devices"], int)
    if ours and gpus and plain["devices"] > gpus:
        problems.append(f"devices={plain['devices']}: this node has {gpus} GPUs; use at most as many")
    return problems


def _try(problems: list[str], key: str, read: Callable[..., Found], *arguments: Any) -> Found | None:
    try:
        return read(*arguments)
    except (ConfigError, DataError, ModelError) as error:
        problems.append(f"{key}: {error}")
        return None


def _rows(problems: list[str], plain: dict, measures: Measures | None) -> tuple[tuple[str, ...], str | None]:
    """The models to measure, each once, the teacher first where it is among them or has a row anyway; and the teacher,
    as it is called there."""
    models, teacher = plain["models"], plain["teacher"]
    if models == "???" or not matches(models, list[str]) or not models:
        problems.append("models: wanted a list of directories or hub ids, for example models=[runs/demo/student]")
        models = []
    named = [("models", name) for name in models] + ([("teacher", teacher)] if isinstance(teacher, str) else [])
    places: dict[str, Any] = {}
    for key, name in named:
        found = _try(problems, key, lambda name=name: Checkpoint(name).resolve())
        if found:
            path, revision = found
            places[name] = (str(Path(path).resolve()) if Path(path).is_dir() else path, revision)
    first: dict[Any, str] = {}
    for name in models:
        place = places.get(name, name)
        if place in first:
            problems.append(f"models: {name} is there already, as {first[place]}; wanted each once")
        first.setdefault(place, name)
    if isinstance(teacher, str):
        teacher = first.get(places.get(teacher), teacher)
        if teacher in models or (measures and measures.teacher_row):
            models = [teacher, *(name for name in models if name != teacher)]
    return tuple(models), teacher


def _settings(
    plain: dict, dtype: str, records: dict[str, list[Record]], task_files: list[str], models: list[str]
) -> dict:
    """What is measured and how, with the content of files and weights, as JSON gives it back."""
    out = {key: value for key, value in plain.items() if key not in _FREE}
    out |= {"dtype": dtype.removeprefix("torch."), "seeds": list(plain["seeds"])}
    judge = plain["suite"].get("judge")
    if judge:
        asked = judge.get("base_url") is not None
        out["suite"] = plain["suite"] | {
            "judge": {key: judge[key] for key in _JUDGE if key in judge} if asked else None
        }

    def content() -> dict:
        found = {name: _content_of(name) for name in models}
        found |= {file: _data_content(file, rows) for file, rows in records.items()}
        return found | {file: fingerprint(Path(file).expanduser()) for file in task_files}

    # Weights are large: one process reads them.
    return json.loads(json.dumps(out | {"content": on_first(content)}))


def read_settings(run_dir: Path) -> dict | None:
    """Those of the last evaluation there. Raises ConfigError: they are damaged, or those of another job."""
    found = read_job_settings(run_dir)
    if found is None:
        return None
    shapes = {"content": dict, "data": dict, "suite": dict, "models": list}
    ours = all(isinstance(found.get(key), kind) for key, kind in shapes.items())
    if not ours or not isinstance(found["data"].get("files"), list):
        raise ConfigError(
            [f"{run_dir / SETTINGS}: is of another job (minillm.generate?) or damaged; choose another run.name"]
        )
    return found


def _refuse_another(settings: dict, run_dir: Path) -> None:
    before = read_settings(run_dir)
    if before and (problems := refused(before, settings)):
        end = f"; {run_dir} was begun otherwise: choose another run.name or delete it"
        raise ConfigError(problem + end for problem in problems)


def _data_content(file: str, records: list[Record]) -> str:
    """The hash of a local file; of a data set of the hub or of this package that of the records it gave, since it may
    change under its name."""
    path = Path(file).expanduser()
    if path.exists():
        return fingerprint(path)
    return hashlib.sha256(json.dumps([asdict(record) for record in records]).encode()).hexdigest()


def _content_of(model: str) -> str | None:
    """What tells one content of a model from another: the hash of a directory's files, or the commit of a hub model
    where it is known."""
    checkpoint = Checkpoint(model)
    path = Path(checkpoint.resolve()[0])
    return fingerprint(path) if path.exists() else getattr(checkpoint.peek()[0], "_commit_hash", None)
