"""The work of evaluate.py: models x files x seeds, metrics.json, answers.jsonl and a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from rich import get_console

from minillm.checks import collect, describe, matches
from minillm.console import say, show_figures
from minillm.data import PromptSet, Record, Sources, read_records, training_keys
from minillm.errors import ConfigError, ModelError
from minillm.evaluation import Answer, answer_prompts, summarise
from minillm.files import write_whole
from minillm.models import Attention, Checkpoint, Dtype, LanguageModel, Pair, choose_dtype, device_of, pair_of, solo
from minillm.secret import secret_problems

COLUMNS = {
    "rouge_l": "Rouge-L",
    "exact_match": "exact",
    "reverse_kl": "reverse KL",
    "length": "length",
    "truncated": "truncated",
    "distinct_4": "distinct-4",
}


@dataclass(frozen=True)
class Suite:
    """What to measure, checked. `records` per file; a seed of None decodes greedily."""

    models: tuple[Checkpoint, ...]
    teacher: Checkpoint | None
    records: dict[str, list[Record]]
    sources: Sources
    seeds: tuple[int | None, ...]
    max_new_tokens: int
    batch_size: int
    dtype: str
    attention: str
    device: str
    run_dir: Path


def check_suite(cfg: DictConfig) -> Suite:
    """Check all settings and read all data files before any model is loaded.

    Raises:
        ConfigError: every wrong setting. DataError: an unusable file.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if secrets := secret_problems(plain):
        raise ConfigError(secrets)
    data = dict(plain["data"])
    files = data.pop("files")
    problems: list[str] = []
    sources = collect(problems, "data", data)
    problems += [f"data.{key}: is for training; evaluate.py measures data.files" for key in training_keys(sources)]
    if plain["models"] == "???" or not matches(plain["models"], list[str]) or not plain["models"]:
        problems.append("models: wanted a list of directories or hub ids, for example models=[runs/demo/student]")
    elif len(set(plain["models"])) != len(plain["models"]):
        problems.append(f"models={plain['models']}: wanted each once")
    if not matches(files, list[str]) or not files:
        problems.append(f"data.files={files!r}: wanted a list of files, for example data.files=[builtin:validation]")
    if not matches(plain["teacher"], str | None):
        problems.append(f"teacher={plain['teacher']!r}: wanted a directory, a hub id or null")
    if (
        not matches(plain["seeds"], list[int | None])
        or not plain["seeds"]
        or len(set(plain["seeds"])) < len(plain["seeds"])
    ):
        problems.append(f"seeds={plain['seeds']!r}: wanted different integers, or [null] for greedy decoding")
    for key, kind in {"dtype": Dtype, "attention": Attention, "device": Literal["auto", "cpu", "cuda"]}.items():
        if not matches(plain[key], kind):
            problems.append(f"{key}={plain[key]!r}: wanted {describe(kind)}")
    for key in ("max_new_tokens", "batch_size"):
        if not matches(plain[key], int) or plain[key] < 1:
            problems.append(f"{key}={plain[key]!r}: wanted a positive integer")
    if not matches(plain["limit"], int | None) or (plain["limit"] or 1) < 1:
        problems.append(f"limit={plain['limit']!r}: wanted a positive integer or null")
    if (Path(plain["run"]["dir"]) / "metrics.json").exists():
        problems.append(
            f"run.name={plain['run']['name']}: {plain['run']['dir']} already holds results; choose another run.name"
        )
    if problems:
        raise ConfigError(problems)
    named = [("models", name) for name in plain["models"]]
    if plain["teacher"] is not None:
        named.append(("teacher", plain["teacher"]))
    for key, name in named:
        try:
            Checkpoint(name).resolve()
        except (ConfigError, ModelError) as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError(problems)
    return Suite(
        models=tuple(map(Checkpoint, plain["models"])),
        teacher=None if plain["teacher"] is None else Checkpoint(plain["teacher"]),
        records={file: read_records(file)[: plain["limit"]] for file in files},
        sources=sources,
        run_dir=Path(plain["run"]["dir"]),
        **{key: plain[key] for key in ("max_new_tokens", "batch_size", "dtype", "attention", "device")},
        seeds=tuple(plain["seeds"]),
    )


def run_suite(suite: Suite) -> dict:
    """Answer and measure; returns what metrics.json holds: model -> file -> figure -> mean, deviation, per seed."""
    results: dict[str, dict[str, dict]] = {}
    suite.run_dir.mkdir(parents=True, exist_ok=True)
    with open(suite.run_dir / "answers.jsonl", "w", encoding="utf-8") as stream:
        for name, pair in _pairs(suite):
            results[name] = {}
            for file, records in suite.records.items():
                prompts = suite.sources.evaluation_prompts(records, pair, file)
                references = [record.references for record in prompts.records]
                if not prompts.has_references:
                    say(f"{file}: not every prompt has a reference; Rouge-L and exact match are left out.")
                figures = []
                for seed in suite.seeds:
                    with get_console().status(f"{name} on {file}, seed {seed}"):
                        answers = _answers(suite, pair, prompts, seed)
                    figures.append(summarise(answers, references if prompts.has_references else None))
                    for answer, record in zip(answers, prompts.records, strict=True):
                        row = {"model": name, "file": file} | answer.row() | {"references": record.references}
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                results[name][file] = _over_seeds(suite.seeds, figures) | {"prompts": len(prompts)}
    # Only now: the file says that the measurement is complete.
    write_whole(suite.run_dir / "metrics.json", json.dumps(results, indent=2) + "\n")
    for file in suite.records:
        rows = {
            name: {key: each["mean"] for key, each in files[file].items() if key != "prompts"}
            for name, files in results.items()
        }
        show_figures(f"{file}, mean of seeds {list(suite.seeds)}", rows, COLUMNS)
    say(f"Wrote {suite.run_dir}: metrics.json, answers.jsonl")
    return results


def _pairs(suite: Suite) -> Iterator[tuple[str, Pair]]:
    """Each model with the teacher."""
    device = device_of(suite.device)
    dtype = choose_dtype(suite.dtype, device)
    teacher = suite.teacher.load(dtype, suite.attention) if suite.teacher else None
    for checkpoint in suite.models:
        network, tokenizer = checkpoint.load(dtype, suite.attention)
        if teacher is None:
            yield checkpoint.source, solo(network.to(device), tokenizer)
        else:
            pair = pair_of(network.to(device), teacher[0].to(device), tokenizer, teacher[1])
            if suite.sources.template == "chat" and not pair.vocabulary.same_template:
                say(f"{checkpoint.source}: prompts are written with its chat template; the teacher's is another.")
            yield checkpoint.source, pair


def _answers(suite: Suite, pair: Pair, prompts: PromptSet, seed: int | None) -> list[Answer]:
    model = LanguageModel(pair.student, pair.n_vocab)
    model.network.eval()
    return answer_prompts(
        model,
        prompts,
        pair.tokenizer,
        seed=seed,
        max_new_tokens=suite.max_new_tokens,
        batch_size=suite.batch_size,
        stop_ids=pair.stop_ids,
        teacher=pair.teacher,
    )


def _over_seeds(seeds: tuple[int | None, ...], figures: list[dict[str, float]]) -> dict[str, dict]:
    out = {}
    for key in figures[0]:
        values = [each[key] for each in figures]
        deviation = stdev(values) if len(values) > 1 else None
        per_seed = dict(zip(map(str, seeds), values, strict=True))
        out[key] = {"mean": mean(values), "deviation": deviation, "per_seed": per_seed}
    return out
