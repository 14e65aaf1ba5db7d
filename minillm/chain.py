"""python -m minillm.chain: the paper's runs, each once what it needs is there, and its table. See conf/chain/.

A stage is a command of its own (train.py, minillm.generate, evaluate.py). Its command, the fingerprints of what it read
and of what it made are recorded in chain.json; a stage whose result is there is skipped, one that was cut off goes on.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from minillm.common import cli
from minillm.common.changes import within
from minillm.common.checks import describe, matches
from minillm.common.child import ROOT
from minillm.common.console import say
from minillm.common.errors import ConfigError, DataError, nearest
from minillm.common.labels import name_problems
from minillm.common.overrides import compose_in_conf
from minillm.data import read_records
from minillm.experiments.commands import METHODS, recipe_of, stages_of, with_settings
from minillm.experiments.stages import begun_on, run_chain
from minillm.experiments.table import show_table, table_of

_MODELS = ("model", "model.student", "model.student.source", "pair.student", "pair.student.source")
_TEACHER = ("model.teacher.source", "model.teacher.adapter", "model.teacher.architecture", "pair.tuned_teacher",
            "pair.of_teacher")  # fmt: skip
_ONE_TEACHER = (
    "Name the one that all are to have with teacher=DIR; an adapter is merged into its base first: docs/recipes.md, A "
    "teacher that is an adapter"
)
_OWN_PAIR = "use pair=own model.student=DIR_OR_ID model.teacher=DIR_OR_ID"
_KINDS = {
    "pair": str, "seeds": list[int], "methods": list[str], "teacher": str | None, "tests": list[str],
    "test_seeds": list[int], "answer_tokens": int | None, "answer_limit": int | None, "test_tokens": int | None,
    "test_limit": int | None, "test_batch_size": int, "jobs": int,
    "overrides": list[str], "teacher_overrides": list[str],
}  # fmt: skip
_POSITIVE = {
    "answer_tokens": "tokens, or null", "test_tokens": "tokens, or null", "answer_limit": "prompts, or null",
    "test_limit": "prompts, or null", "test_batch_size": "rows", "jobs": "stages at a time",
}  # fmt: skip


def check_chain(cfg: DictConfig) -> dict:
    """The settings as plain values. Raises ConfigError with every wrong one."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    problems = [
        f"{key}={plain[key]!r}: wanted {describe(kind)}"
        for key, kind in _KINDS.items()
        if not matches(plain[key], kind)
    ]
    problems += [
        f"model.{side}={name!r}: wanted a directory or a hub id, or null: that of the pair"
        for side, name in plain["model"].items()
        if not matches(name, str | None)
    ]
    if not problems:
        lists = ("seeds", "methods", "tests", "test_seeds")
        problems += [f"{key}=[]: wanted at least one" for key in lists if not plain[key]]
        problems += [f"{key}={plain[key]}: wanted each once" for key in lists if len(set(plain[key])) < len(plain[key])]
        problems += [
            f"methods: {name}: wanted some of {', '.join(METHODS)}" for name in plain["methods"] if name not in METHODS
        ]
        problems += name_problems(name := plain["run"]["name"]) or _place_problem(name, plain["run"]["dir"])
        problems += [problem for file in plain["tests"] if (problem := _test_problem(file))]
        problems += [
            f"{key}={plain[key]}: wanted a positive number of {of}"
            for key, of in _POSITIVE.items()
            if plain[key] is not None and plain[key] < 1
        ]
        stems = [Path(file).stem for file in plain["tests"]]
        if len(set(stems)) < len(stems):
            problems.append(f"tests: the files are columns by their names {', '.join(stems)}; wanted different ones")
        problems += _pair_problems(plain)
        problems += [
            f"overrides: {each}: goes to the teacher's run too, which would train that model: name a teacher that is "
            f"fine-tuned already (teacher=DIR), or {_OWN_PAIR}"
            for each in plain["overrides"]
            if plain["teacher"] is None and _key(each) in _MODELS
        ]
        problems += [
            f"{name}: {each}: KD and MiniLLM alone would learn from that teacher; SeqKD's answers and the table are of "
            f"teacher={plain['teacher'] or 'null'}. {_ONE_TEACHER}"
            for name in ("overrides", "teacher_overrides")
            for each in plain[name]
            if within(_key(each), _TEACHER)
        ]
    if problems:
        raise ConfigError(problems)
    return plain


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def _pair_problems(plain: dict) -> list[str]:
    pairs = {file.stem for file in (ROOT / "conf" / "pair").glob("*.yaml")} - {"base"}
    if plain["pair"] not in pairs:
        return [f"pair={plain['pair']}: no conf/pair/{plain['pair']}.yaml; {nearest(plain['pair'], pairs)}"]
    needed = ["student"] if plain["teacher"] else ["student", "teacher"]
    return [
        f"model.{side}=null with pair=own: wanted a directory or a hub id"
        for side in needed
        if plain["pair"] == "own" and plain["model"][side] is None
    ]


def _recipes(plain: dict) -> list[str]:
    """Stages whose configs are read: SFT's tells the data, whether or not it is run."""
    stages = {"sft", *plain["methods"]} | (set() if plain["teacher"] else {"teacher"})
    return sorted(stages | ({"start"} if any(name.startswith("minillm") for name in plain["methods"]) else set()))


def composed(plain: dict) -> dict[str, DictConfig]:
    """The configs of the training stages. Raises ConfigError where one has no place for an override."""
    found = {}
    for name in _recipes(plain):
        recipe = recipe_of(plain, name)
        try:
            more = [] if name in ("teacher", "start", "sft") else plain["teacher_overrides"]
            found[name] = compose_in_conf("train", [*recipe, *plain["overrides"], *more])
        except HydraException as error:
            text = f"overrides, in {' '.join(recipe)}: {cli.explain(error, 'train')}"
            raise ConfigError(text + (f"\nFor other models {_OWN_PAIR}" if "model." in text else "")) from error
    return found


def _place_problem(name: str, folder: str) -> list[str]:
    """Stages are runs of their own, by name."""
    wanted = Path("runs", name)
    if Path(folder).resolve() == wanted.resolve():
        found = [each for each in ("config.yaml", "settings.json") if (wanted / each).exists()]
        return [f"run.name={name}: {wanted} holds another run ({found[0]}); choose another name"] if found else []
    return [f"hydra.run.dir={folder}: wanted {wanted}, below which the stages go by their run.name; choose run.name"]


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
    trained = composed(plain)["sft"]
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
    out.write_text(json.dumps(table | {"settings": plain, "stages": records}, indent=2) + "\n")
    show_table(table)
    say(f"Wrote {out}: every figure by method and seed")


if __name__ == "__main__":
    cli.run(main, "chain")
