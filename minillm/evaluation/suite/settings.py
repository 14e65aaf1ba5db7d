"""From the config of evaluate.py to a checked `Suite`. Every problem that can be known before a model is loaded is
reported first, and all at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig

from minillm import parallel
from minillm.common.checks import collect, matches
from minillm.common.errors import ConfigError, DataError, ModelError, check
from minillm.common.labels import name_problems
from minillm.common.lazy import lazy
from minillm.common.ranks import in_a_worker, local_rank, started_processes
from minillm.data import ChoiceTask, Record, Sources, read_choices, read_records
from minillm.evaluation.job import Options, begin_check, content_of, dtype_name
from minillm.evaluation.judge.judge import Judge
from minillm.evaluation.metrics import FIGURES, Figure, figures_at
from minillm.models import Checkpoint, device_of

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

early = lazy("minillm.evaluation.suite.early")
Found = TypeVar("Found")
_FREE = ("run", "device", "devices", "report", "wandb")  # they change no measured number
_JUDGE = ("model", "options", "asks")  # the settings of the judge that its ratings depend on


@dataclass(frozen=True)
class Exposure:
    """`samples` a prompt and model at temperature 1, of the first `limit` prompts of each file."""

    samples: int = 10
    seed: int = 10
    limit: int | None = None

    def __post_init__(self):
        check(
            (self.samples > 0, f"samples={self.samples}: wanted a positive number"),
            (self.limit is None or self.limit > 0, f"limit={self.limit}: wanted a positive number, or null"),
        )


@dataclass(frozen=True)
class Calibration(ChoiceTask):
    """A zero-shot task with the file of its rows; a file of null leaves the task out."""

    file: str | None = None


Tasks = dict[str, tuple[Calibration, list[Record]]]


@dataclass(frozen=True)
class Measures:
    """`decodings`: no_repeat_ngram_size by name. `figures`: import paths of figures of one's own."""

    name: str
    teacher_row: bool
    decodings: dict[str, int]
    reference_loss: bool
    exposure: Exposure | None
    calibration: dict[str, Any]
    calibration_limit: int | None
    token_rows: int
    judge: Judge | None
    figures: list[str] = field(default_factory=list)

    def __post_init__(self):
        figures_at(self.figures)
        sizes, limit = self.decodings.values(), self.calibration_limit
        names = [*self.decodings, *self.calibration]
        check(
            (
                len(sizes) > 0 and all(type(size) is int and size >= 0 for size in sizes),
                f"decodings={self.decodings}: wanted no_repeat_ngram_size by name, for example {{plain: 0}}",
            ),
            *((re.fullmatch(r"\w+", name), f"{name}: wanted a name of letters and digits") for name in names),
            (limit is None or limit > 0, f"calibration_limit={limit}: wanted a positive number of rows, or null"),
            (self.token_rows >= 0, f"token_rows={self.token_rows}: wanted 0 or more"),
        )

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        return (*FIGURES, *figures_at(self.figures))

    @property
    def plain(self) -> str | None:
        """The first decoding without a limit on n-grams; its tokens and positions are shown."""
        return next((name for name, size in self.decodings.items() if size == 0), None)


@dataclass(frozen=True)
class _Options(Options):
    teacher: str | None
    seeds: list[int | None]
    devices: int


@dataclass(frozen=True)
class Suite(_Options):
    """What to measure, checked. `models`: rows in their order, the teacher first where it is one; `records` per file; a
    seed of None decodes greedily; `tasks`: those of calibration with their records; `settings`: what is measured and
    how, with the hash of each file and model; `notes`: see `template_notes`."""

    dtype: torch.dtype
    device: torch.device
    measures: Measures
    models: tuple[str, ...]
    records: dict[str, list[Record]]
    tasks: Tasks
    sources: Sources
    run_dir: Path
    run_name: str
    settings: dict
    notes: tuple[str, ...] = ()
    temperature: float = 1.0
    as_teacher: bool = False  # the prompts are those that a teacher sees


def check_suite(cfg: DictConfig) -> Suite:
    """Check settings, files, tokenizers and what the run's directory holds, before any model is loaded.

    Raises:
        ConfigError: everything that is wrong.
    """
    # The length of references, for their loss, is no key of training.
    plain, sources, before, problems = begin_check(cfg, _Options, "files", allowed=("max_response_tokens",))
    name, run_dir, teacher = plain["run"]["name"], Path(plain["run"]["dir"]), plain["teacher"]
    measures, tasks = read_measures(problems, plain["suite"])
    if (run_dir / "config.yaml").exists() or (before and "models" not in before):
        problems.append(f"run.name={name}: {run_dir} holds another run; choose another name")
    problems += name_problems(name) + _value_problems(plain)
    records = _read_files(problems, plain)
    models = _rows(problems, plain, measures)
    if problems:
        raise ConfigError(problems)
    lengths = {"max_new_tokens": plain["max_new_tokens"]}
    if measures.reference_loss:
        lengths["data.max_response_tokens"] = sources.max_response_tokens
    names = _checkpoints(models, teacher)
    if problems := early.model_problems(names, teacher, sources, records, tasks, lengths):
        raise ConfigError(problems)
    suite = made_suite(plain, before, measures=measures, models=models, records=records, tasks=tasks, sources=sources)
    return replace(suite, notes=tuple(early.template_notes(names, plain["data"])))


def made_suite(plain: dict, before: dict | None, **given: Any) -> Suite:
    """The suite of checked settings; `given`: what is not among them. A date that an earlier beginning has chosen stays
    in `data`, and in `settings`."""
    models, sources = _checkpoints(given["models"], plain["teacher"]), given["sources"]
    date = before and before.get("data", {}).get("date")
    for name in models:
        sources = parallel.agree(sources.begun(Checkpoint(name).peek()[1], date))
    plain["data"]["date"] = sources.date
    device = device_of(plain["device"])
    if device.type == "cuda" and in_a_worker():
        device = torch.device("cuda", local_rank())
    options = {each.name: plain[each.name] for each in fields(_Options) if each.name in plain}
    options |= {"dtype": getattr(torch, dtype_name(plain)), "device": device}
    options |= {"run_dir": Path(plain["run"]["dir"]), "run_name": plain["run"]["name"]}
    task_files = [task.file for task, _ in given["tasks"].values()]
    settings = _settings(plain, given["records"], task_files, models)
    return Suite(**options | given | {"sources": sources, "settings": settings})


def _checkpoints(models: Sequence[str], teacher: str | None) -> list[str]:
    return list(dict.fromkeys([*models, *filter(None, [teacher])]))


def read_measures(problems: list[str], node: Mapping) -> tuple[Measures | None, Tasks]:
    """The plain config group `suite`: the measures, and the tasks of calibration that have a file, with its records.
    Problems are added to `problems`."""
    node, tasks, read = dict(node), {}, {}
    if node.get("judge") and node["judge"].get("base_url") is None:  # the default: no judge
        if node["judge"].get("model") is not None:
            problems.append("suite.judge.base_url=null, but suite.judge.model is given: wanted the address too")
        node["judge"] = None
    for key, kind in (("exposure", Exposure), ("judge", Judge)):
        if isinstance(node.get(key), Mapping):
            node[key] = _as(kind, node[key])
    given = node.get("calibration")
    for name, task in given.items() if isinstance(given, Mapping) else ():
        path = f"suite.calibration.{name}"
        if not isinstance(task, Mapping):
            problems.append(f"{path}={task!r}: wanted file, instruction, input and words")
        elif calibration := collect(problems, path, _as(Calibration, task)):
            tasks[name] = calibration
            if calibration.file:
                read[name] = calibration, _try(problems, f"{path}.file", read_choices, calibration.file, calibration)
    if isinstance(given, Mapping):
        node["calibration"] = tasks
    measures = collect(problems, "suite", _as(Measures, node))
    limit = measures and measures.calibration_limit
    return measures, {name: (task, rows[:limit]) for name, (task, rows) in read.items() if rows}


def _as(kind: type, node: Mapping) -> dict:
    return {"_target_": f"{kind.__module__}.{kind.__name__}", **node}


def _value_problems(plain: dict) -> list[str]:
    problems, seeds = [], plain["seeds"]
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
    if judge := plain.get("suite", {}).get("judge"):
        kept = {key: judge[key] for key in _JUDGE if key in judge}
        out["suite"] = plain["suite"] | {"judge": None if judge.get("base_url") is None else kept}

    def content() -> dict:
        found = {name: _content_of(name) for name in models}
        for file, rows in records.items():  # a data set of the hub may change under its name
            found[file] = content_of(file) or hashlib.sha256(json.dumps(list(map(asdict, rows))).encode()).hexdigest()
        return found | {file: content_of(file) for file in task_files}

    # Weights are large: one process reads them.
    return json.loads(json.dumps(out | {"content": parallel.on_first(content)}))


def _content_of(model: str) -> str | None:
    """The hash of a model's files, or the commit of a hub model where it is known."""
    checkpoint = Checkpoint(model)
    return content_of(checkpoint.resolve()[0]) or getattr(checkpoint.peek()[0], "_commit_hash", None)
