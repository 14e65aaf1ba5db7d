"""python -m minillm.chain: the paper's runs, each once what it needs is there, and its table. See conf/chain/.

A stage is a command of its own (train.py, minillm.generate, evaluate.py). chain.json records its settings and the
fingerprints of what it read and made. A finished stage is skipped; one that was cut off goes on.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Literal

import hydra
from omegaconf import DictConfig, OmegaConf

from minillm.common import cli
from minillm.common.changes import within
from minillm.common.checks import value_problems
from minillm.common.console import say
from minillm.common.errors import ConfigError, DataError
from minillm.common.files import write_whole
from minillm.common.labels import name_problems
from minillm.common.secret import secret_problems
from minillm.data import read_records
from minillm.experiments.commands import METHODS, OWN_PAIR, composed, recipe_of, stages_of, with_settings
from minillm.experiments.stages import begun_on, run_chain
from minillm.experiments.table import show_table, table_of

# Overrides of these would train other models than the table says.
_MODELS = ("model.student.source", "model.teacher.source", "model.teacher.adapter", "model.teacher.architecture",
           "pair.student.source", "pair.tuned_teacher", "pair.of_teacher")  # fmt: skip
_WHOLE = ("model", "model.student", "model.teacher", "pair.student")
_POSITIVE = ("answer_tokens", "answer_limit", "test_tokens", "test_limit", "test_batch_size", "jobs")
_LISTS = {"seeds": list[int], "methods": list[Literal[METHODS]], "tests": list[str], "test_seeds": list[int]}
_KINDS = _LISTS | {
    "pair": str, "teacher": str | None, "overrides": list[str], "teacher_overrides": list[str],
    "answer_tokens": int | None, "answer_limit": int | None, "test_tokens": int | None, "test_limit": int | None,
    "test_batch_size": int, "jobs": int,
}  # fmt: skip


def check_chain(cfg: DictConfig) -> dict:
    """The settings as plain values. Raises ConfigError with every wrong one."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if secrets := secret_problems(plain):
        raise ConfigError(secrets)
    if problems := value_problems(plain, _KINDS, _POSITIVE):
        raise ConfigError(problems)
    for key in _LISTS:
        if not plain[key] or len(set(plain[key])) < len(plain[key]):
            problems.append(f"{key}={plain[key]}: wanted at least one, each once")
    stems = [Path(file).stem for file in plain["tests"]]
    if len(set(stems)) < len(stems):
        problems.append(f"tests: the files are columns by their names {', '.join(stems)}; wanted different ones")
    problems += [problem for file in plain["tests"] if (problem := _test_problem(file))]
    problems += name_problems(name := plain["run"]["name"]) or _place_problem(name, plain["run"]["dir"])
    problems += _override_problems(plain)
    if problems:
        raise ConfigError(problems)
    return plain


def _override_problems(plain: dict) -> list[str]:
    names = ("overrides", "teacher_overrides")
    words = [(name, each.lstrip("+~").split("=")[0]) for name in names for each in plain[name]]
    return [
        f"{name}: {key}: stages and table would be of different models; {OWN_PAIR}, or teacher=DIR for one that is "
        "fine-tuned already, an adapter merged into its base first (docs/recipes.md, A teacher that is an adapter)"
        for name, key in words
        if key in _WHOLE or within(key, _MODELS)
    ]


def _place_problem(name: str, folder: str) -> list[str]:
    """Stages are runs of their own, by name."""
    wanted = Path("runs", name)
    if Path(folder).resolve() != wanted.resolve():
        return [f"hydra.run.dir={folder}: wanted {wanted}, below which the stages are; choose run.name"]
    found = [each for each in ("config.yaml", "settings.json") if (wanted / each).exists()]
    return [f"run.name={name}: {wanted} holds another run ({found[0]}); choose another name"] if found else []


def _test_problem(file: str) -> str | None:
    if not Path(file).expanduser().is_file():
        return f"tests: {file}: no such file"
    try:
        bare = [record.id for record in read_records(file) if not record.references]
    except DataError as error:
        return f"tests: {error}"
    return f"tests: {bare[0]} and {len(bare) - 1} more rows have no reference (key output)" if bare else None


@hydra.main(config_path="../conf/chain", config_name="chain", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    plain = check_chain(cfg)
    trained = composed("train", [*recipe_of(plain, "sft"), *plain["overrides"]])
    data = OmegaConf.to_container(trained.data, resolve=True)
    if "seqkd" in plain["methods"] and data["val_file"] is None:
        raise ConfigError(
            "data.val_file=null: SeqKD would be validated on the teacher's answers, the others on references; give one "
            "with overrides"
        )
    run_dir = Path(plain["run"]["dir"])
    if data["template"] == "chat":
        data["date"] = data["date"] or begun_on(run_dir) or datetime.date.today().isoformat()
    stages = stages_of(plain, data, trained.callbacks.validation.max_new_tokens)
    records = run_chain(run_dir, with_settings(stages, run_dir), plain["jobs"])
    table = table_of(json.loads((run_dir / "test" / "metrics.json").read_text()), plain["methods"], plain["seeds"])
    out = run_dir / f"{run_dir.name}.json"
    write_whole(out, json.dumps(table | {"settings": plain, "stages": records}, indent=2) + "\n")
    show_table(table)
    say(f"Wrote {out}: every figure by method and seed")


if __name__ == "__main__":
    cli.run(main, "chain")
