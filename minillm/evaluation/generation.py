"""A teacher answers prompts, on disk, as training data of SeqKD.

Prompts are answered in chunks, one file each. A stopped run goes on with the missing chunks, and processes under
torchrun or srun share them. The result is the same: a row's random stream depends on seed and row alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.progress import Progress

from minillm.common.changes import changes, flat
from minillm.common.checks import collect
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError
from minillm.common.files import fingerprint, write_whole
from minillm.common.lazy import lazy
from minillm.common.ranks import local_rank
from minillm.common.read import SETTINGS, read_job_settings
from minillm.data import Record, Sources, read_records, training_keys
from minillm.evaluation.job import Options, dtype_name, option_problems, plain_config, share
from minillm.models import Checkpoint, device_of, solo

if TYPE_CHECKING:
    import torch

    from minillm.data import PromptSet
    from minillm.evaluation import Answer
else:
    torch = lazy("torch")


@dataclass(frozen=True)
class _Options(Options):
    teacher: str
    seed: int | None
    temperature: float


@dataclass(frozen=True)
class Generation:
    """What to answer, checked. `settings` is what must not change when a stopped run goes on."""

    teacher: Checkpoint
    records: list[Record]
    sources: Sources
    run_dir: Path
    settings: dict

    @property
    def answers_file(self) -> Path:
        return self.run_dir / "answers.jsonl"

    def part(self, chunk: int) -> Path:
        return self.run_dir / "parts" / f"{chunk:06}.jsonl"


def check_generation(cfg: DictConfig) -> Generation:
    """Raises ConfigError with every wrong setting; DataError for an unusable file."""
    plain = plain_config(cfg)
    data = {key: value for key, value in plain["data"].items() if key != "file"}
    file, run_dir, problems = plain["data"]["file"], Path(plain["run"]["dir"]), []
    sources = collect(problems, "data", data)
    keys = [key for key in training_keys(sources) if not key.startswith("teacher_")]  # which it sees here too
    problems += [f"data.{key}: is for training; generate answers data.file" for key in keys]
    problems += option_problems(plain, _Options)
    if plain["teacher"] == "???":
        problems.append(
            "teacher: wanted a directory, a hub id, a .gguf file or package:NAME, for example teacher=runs/x/student"
        )
    if not isinstance(file, str):
        problems.append(f"data.file={file!r}: wanted a .jsonl file, builtin, or a hub data set")
    if problems:
        raise ConfigError(problems)
    before = read_job_settings(run_dir)
    ours = before is not None and "models" not in before  # an evaluation's has them
    if ours and data["date"] is None:
        plain["data"]["date"] = before.get("data", {}).get("date")
    settings = {each.name: plain[each.name] for each in fields(_Options) if each.name != "device"}
    settings |= {"data": plain["data"], "dtype": dtype_name(plain)}
    for key, path in (("teacher", plain["teacher"]), ("data.file", file)):
        if isinstance(path, str) and Path(path).expanduser().exists():  # it may change while the run is stopped
            settings[f"content of {key}"] = fingerprint(Path(path).expanduser())
    if ours:
        found = changes(flat(before), flat(settings))
        problems += [
            f"{each}; {run_dir} was begun with the first: choose another run.name or delete it" for each in found
        ]
    elif before is not None or any((run_dir / name).exists() for name in ("answers.jsonl", "config.yaml")):
        problems.append(
            f"run.name={plain['run']['name']}: {run_dir} already holds another run; choose another run.name"
        )
    if problems:
        raise ConfigError(problems)
    try:
        Checkpoint(plain["teacher"]).resolve()
    except (ConfigError, ModelError) as error:
        raise ConfigError([f"teacher: {error}"]) from error
    return Generation(Checkpoint(plain["teacher"]), read_records(file)[: plain["limit"]], sources, run_dir, settings)


def generate(work: Generation, device: str, rank: int = 0, world_size: int = 1) -> Path | None:
    """Answer this process's share of the missing chunks; answers.jsonl once all are there, else None."""
    from minillm.evaluation import answer_prompts
    from minillm.models import LanguageModel

    if work.answers_file.exists():
        say(f"{work.answers_file} is already there.")
        return work.answers_file
    place = device_of(device)
    if place.type == "cuda" and world_size > 1:
        place = torch.device("cuda", local_rank())
    settings = work.settings
    network, tokenizer = work.teacher.load(getattr(torch, settings["dtype"]), settings["attention"])
    sources = work.sources.begun(tokenizer, settings["data"]["date"])
    settings = settings | {"data": settings["data"] | {"date": sources.date}}
    pair = solo(network.to(place), tokenizer)
    model = LanguageModel(pair.student, pair.n_vocab)
    prompts = sources.evaluation_prompts(work.records, pair, "prompts", teacher=True).for_teacher
    work.part(0).parent.mkdir(parents=True, exist_ok=True)
    write_whole(work.run_dir / SETTINGS, json.dumps(settings, indent=2) + "\n")
    size = settings["chunk"]
    chunks = range(-(-len(prompts) // size))
    mine = share(chunks, rank, world_size)
    missing = [chunk for chunk in mine if not work.part(chunk).exists()]
    if len(missing) < len(mine):
        say(f"{len(mine) - len(missing)} of {len(mine)} parts are already there.")
    with Progress(disable=rank > 0) as bar:
        task = bar.add_task("parts", total=len(mine), completed=len(mine) - len(missing))
        for chunk in missing:
            rows = range(chunk * size, min((chunk + 1) * size, len(prompts)))
            answers = answer_prompts(
                model,
                prompts,
                tokenizer,
                seeds=None if settings["seed"] is None else [settings["seed"]],
                max_new_tokens=settings["max_new_tokens"],
                batch_size=settings["batch_size"],
                stop_ids=pair.stop_ids,
                rows=rows,
                temperature=settings["temperature"],
            )
            write_whole(work.part(chunk), _lines(prompts, rows, answers))
            bar.advance(task)
    return _join(work, chunks)


def row_of(record: Record, answer: Answer) -> dict:
    """The answer as a row of training data."""
    if record.history:
        turns = [*record.history, ("user", record.question), ("assistant", answer.answer)]
        content = {"messages": [{"role": role, "content": text} for role, text in turns]}
    else:
        content = {"instruction": record.instruction, "input": record.input, "output": answer.answer}
    return {"id": record.id, **content, "truncated": answer.truncated}


def _lines(prompts: PromptSet, rows: range, answers: list[Answer]) -> str:
    made = (row_of(prompts.records[row], answer) for row, answer in zip(rows, answers, strict=True))
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made)


def _join(work: Generation, chunks: range) -> Path | None:
    """All parts as one file, by the process that finds the last one written; two that do so write the same."""
    parts = [work.part(chunk) for chunk in chunks]
    try:
        write_whole(work.answers_file, "".join(part.read_text(encoding="utf-8") for part in parts))
    except FileNotFoundError:
        if work.answers_file.exists():  # another process was faster
            return work.answers_file
        say(f"{sum(not part.exists() for part in parts)} parts are left to the other processes.")
        return None
    for part in parts:
        part.unlink(missing_ok=True)
    rows = [json.loads(line) for line in work.answers_file.read_text(encoding="utf-8").split("\n") if line]
    n_cut = sum(row["truncated"] for row in rows)
    say(f"Wrote {work.answers_file}: train on it with data.train_file={work.answers_file}")
    if n_cut:
        say(f"{n_cut} of {len(rows)} answers were cut off at max_new_tokens; training gives them no end")
    return work.answers_file
