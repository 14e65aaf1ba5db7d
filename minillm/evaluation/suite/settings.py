"""From the config of evaluate.py to a checked `Suite`. Every problem that can be known before a model is loaded is
reported first, and all at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig

from minillm import parallel
from minillm.common.checks import collect, matches
from minillm.common.errors import ConfigError, DataError, ModelError
from minillm.common.files import fingerprint
from minillm.common.labels import name_problems
from minillm.common.lazy import lazy
from minillm.common.ranks import started_processes
from minillm.common.read import read_job_settings
from minillm.data import Record, Sources, read_choices, read_records, training_keys
from minillm.evaluation.job import Options, dtype_name, option_problems, plain_config
from minillm.evaluation.suite.measures import Calibration, Measures, read_measures
from minillm.models import Checkpoint, device_of

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

Found = TypeVar("Found")
_FREE = ("run", "device", "devices", "report", "wandb")  # they change no measured number
_JUDGE = ("model", "options", "asks")  # the settings of the judge that its ratings depend on


@dataclass(frozen=True)
class _Options(Options):
    teacher: str | None
    seeds: list[int | None]
    devices: int


@dataclass(frozen=True)
class Suite:
    """What to measure, checked. `models`: rows in their order, the teacher first where it is one; `records` per file; a
    seed of None decodes greedily; `tasks`: those of calibration with their records; `settings`: what is measured and
    how, with the hash of each file and model; `notes`: see `template_notes`."""

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
    plain = plain_config(cfg)
    run_dir, problems = Path(plain["run"]["dir"]), []
    sources = collect(problems, "data", {key: value for key, value in plain["data"].items() if key != "files"})
    measures, calibrations = read_measures(problems, plain["suite"])
    problems += [
        f"data.{key}: is for training; evaluate.py measures data.files"
        for key in training_keys(sources)
        if key != "max_response_tokens"  # of references, for their loss
    ]
    before = _try(problems, "run.name", read_job_settings, run_dir)
    if (run_dir / "config.yaml").exists() or (before and "models" not in before):
        problems.append(f"run.name={plain['run']['name']}: {run_dir} holds another run; choose another name")
    problems += name_problems(plain["run"]["name"]) + _value_problems(plain)
    records = _read_files(problems, plain)
    tasks = {}
    for name, task in calibrations.items():
        rows = task.file and _try(problems, f"suite.calibration.{name}.file", read_choices, task.file, task)
        if rows and measures:
            tasks[name] = (task, rows[: measures.calibration_limit])
    models, teacher = _rows(problems, plain, measures), plain["teacher"]
    if problems:
        raise ConfigError(problems)
    from minillm.evaluation.suite.early import model_problems, template_notes

    checkpoints = list(dict.fromkeys([*models, *filter(None, [teacher])]))
    lengths = {"max_new_tokens": plain["max_new_tokens"]}
    if measures.reference_loss:
        lengths["data.max_response_tokens"] = sources.max_response_tokens
    if problems := model_problems(checkpoints, teacher, sources, records, tasks, lengths):
        raise ConfigError(problems)
    for name in checkpoints:
        sources = parallel.agree(
            sources.begun(Checkpoint(name).peek()[1], before and before.get("data", {}).get("date"))
        )
    plain["data"]["date"] = sources.date
    return Suite(
        measures=measures, models=models, teacher=teacher, records=records, tasks=tasks, sources=sources,
        seeds=tuple(plain["seeds"]), dtype=getattr(torch, dtype_name(plain)), device=device_of(plain["device"]),
        run_dir=run_dir, run_name=plain["run"]["name"],
        settings=_settings(plain, records, [task.file for task, _ in tasks.values()], checkpoints),
        notes=tuple(template_notes(checkpoints, plain["data"])),
        **{key: plain[key] for key in ("max_new_tokens", "batch_size", "chunk", "attention", "devices")},
    )  # fmt: skip


def _value_problems(plain: dict) -> list[str]:
    problems, seeds = option_problems(plain, _Options), plain["seeds"]
    if matches(seeds, list) and (not seeds or len(set(map(str, seeds))) < len(seeds) or None in seeds[1:]):
        problems.append(f"seeds={seeds}: wanted different integers, or [null] for greedy decoding")
    several = matches(plain["devices"], int) and plain["devices"] > 1
    gpus = torch.cuda.device_count() if several and started_processes() == 1 and plain["device"] != "cpu" else 0
    if 0 < gpus < plain["devices"]:
        problems.append(f"devices={plain['devices']}: this node has {gpus} GPUs; use at most as many")
    return problems


def _try(problems: list[str], key: str, read: Callable[..., Found], *arguments: Any) -> Found | None:
    try:
        return read(*arguments)
    except (ConfigError, DataError, ModelError) as error:
        problems.append(f"{key}: {error}")
        return None


def _read_files(problems: list[str], plain: dict) -> dict[str, list[Record]]:
    files = plain["data"]["files"]
    named = matches(files, list[str]) and files
    if not named or len({Path(file).expanduser().resolve() for file in files}) < len(files):
        problems.append(
            f"data.files={files!r}: wanted a list of different files, for example data.files=[builtin:validation]"
        )
        return {}
    limit = plain["limit"] if matches(plain["limit"], int) else None
    found = {file: _try(problems, "data.files", read_records, file) for file in files}
    return {file: rows[:limit] for file, rows in found.items() if rows}


def _rows(problems: list[str], plain: dict, measures: Measures | None) -> tuple[str, ...]:
    """The models to measure, the teacher first where it is among them or has a row anyway."""
    models, teacher = plain["models"], plain["teacher"]
    if not matches(models, list[str]) or not models:
        problems.append("models: wanted a list of directories or hub ids, for example models=[runs/demo/student]")
        models = []
    for key, names in (("models", models), ("teacher", [teacher] if isinstance(teacher, str) else [])):
        for name in names:
            _try(problems, key, Checkpoint(name).resolve)
    if len(set(map(os.path.normpath, models))) < len(models):
        problems.append(f"models={models}: wanted each once")
    if isinstance(teacher, str) and (teacher in models or (measures and measures.teacher_row)):
        models = [teacher, *(name for name in models if name != teacher)]
    return tuple(models)


def _settings(plain: dict, records: dict[str, list[Record]], task_files: list[str], models: list[str]) -> dict:
    """What is measured and how, with the content of files and weights, as JSON gives it back."""
    out = {key: value for key, value in plain.items() if key not in _FREE} | {"dtype": dtype_name(plain)}
    if judge := plain["suite"].get("judge"):
        kept = {key: judge[key] for key in _JUDGE if key in judge}
        out["suite"] = plain["suite"] | {"judge": None if judge.get("base_url") is None else kept}

    def content() -> dict:
        found = {name: _content_of(name) for name in models}
        found |= {file: _data_content(file, rows) for file, rows in records.items()}
        return found | {file: fingerprint(Path(file).expanduser()) for file in task_files}

    # Weights are large: one process reads them.
    return json.loads(json.dumps(out | {"content": parallel.on_first(content)}))


def _data_content(file: str, records: list[Record]) -> str:
    """The hash of a local file; otherwise of the records, since a data set of the hub may change under its name."""
    path = Path(file).expanduser()
    if path.exists():
        return fingerprint(path)
    return hashlib.sha256(json.dumps([asdict(record) for record in records]).encode()).hexdigest()


def _content_of(model: str) -> str | None:
    """The hash of a model's files, or the commit of a hub model where it is known."""
    checkpoint = Checkpoint(model)
    path = Path(checkpoint.resolve()[0])
    return fingerprint(path) if path.exists() else getattr(checkpoint.peek()[0], "_commit_hash", None)
