"""python -m minillm.chain: the paper's runs one after the other, and its table. See conf/chain.yaml.

A stage is a command of its own (train.py, minillm.generate, evaluate.py). Its command, the fingerprints of what it read
and of what it made are recorded in chain.json; a stage whose result is there is skipped, one that was cut off goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import hydra
from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from minillm import cli
from minillm.config.checks import describe, matches
from minillm.data import read_records
from minillm.errors import ConfigError, DataError
from minillm.recipe.stages import Stage, run_chain
from minillm.recipe.table import show_table, table_of
from minillm.system.child import ROOT
from minillm.terminal.console import say

METHODS = ("sft", "kd", "seqkd", "minillm_nopt", "minillm")
_MODELS = ("model", "model.student", "model.student.source", "checkpoint@model.student")
_OWN_PAIR = "make a pair of your own: docs/recipes.md, One's own pair in the chain"
_KINDS = {
    "pair": str, "seeds": list[int], "methods": list[str], "teacher": str | None, "tests": list[str],
    "test_seeds": list[int], "answer_tokens": int | None, "answer_limit": int | None, "test_tokens": int | None,
    "test_limit": int | None, "test_batch_size": int,
    "overrides": list[str], "teacher_overrides": list[str],
}  # fmt: skip


def check_chain(cfg: DictConfig) -> dict:
    """The settings as plain values. Raises ConfigError with every wrong one."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    problems = [
        f"{key}={plain[key]!r}: wanted {describe(kind)}"
        for key, kind in _KINDS.items()
        if not matches(plain[key], kind)
    ]
    if not problems:
        problems += [f"{key}=[]: wanted at least one" for key in ("seeds", "methods", "tests") if not plain[key]]
        problems += [
            f"methods: {name}: wanted some of {', '.join(METHODS)}" for name in plain["methods"] if name not in METHODS
        ]
        problems += [problem for file in plain["tests"] if (problem := _test_problem(file))]
        problems += [
            f"{key}={plain[key]}: wanted a positive number of tokens, or null"
            for key in ("answer_tokens", "test_tokens")
            if plain[key] is not None and plain[key] < 1
        ]
        stems = [Path(file).stem for file in plain["tests"]]
        if len(set(stems)) < len(stems):
            problems.append(f"tests: the files are columns by their names {', '.join(stems)}; wanted different ones")
        problems += [
            f"pair={plain['pair']}: no conf/experiment/{plain['pair']}_{name}.yaml"
            for name in _experiments(plain)
            if not (ROOT / "conf" / "experiment" / f"{plain['pair']}_{name}.yaml").exists()
        ]
        problems += [
            f"overrides: {each}: goes to the teacher's run too, which would train that model: name a teacher that is "
            f"fine-tuned already (teacher=DIR), or {_OWN_PAIR}"
            for each in plain["overrides"]
            if plain["teacher"] is None and each.lstrip("+").split("=")[0] in _MODELS
        ]
    if problems:
        raise ConfigError(problems)
    return plain


def _experiments(plain: dict) -> list[str]:
    """Stages whose configs are read: SFT's tells the data, whether or not it is run."""
    stages = {"sft", *plain["methods"]} | (set() if plain["teacher"] else {"teacher"})
    return sorted(stages | ({"start"} if any(name.startswith("minillm") for name in plain["methods"]) else set()))


def composed(plain: dict) -> dict[str, DictConfig]:
    """The configs of the training stages. Raises ConfigError where one has no place for an override."""
    found = {}
    for name in _experiments(plain):
        experiment = f"experiment={plain['pair']}_{name}"
        try:
            more = [] if name in ("teacher", "start", "sft") else plain["teacher_overrides"]
            found[name] = compose("train", [experiment, *plain["overrides"], *more])
        except HydraException as error:
            text = f"overrides, in {experiment}: {cli.explain(error, 'train')}"
            raise ConfigError(text + (f"\nFor other models {_OWN_PAIR}" if "model." in text else "")) from error
    return found


def _test_problem(file: str) -> str | None:
    if not Path(file).exists():
        return f"tests: {file}: no such file"
    try:
        bare = [record.id for record in read_records(file) if not record.references]
    except DataError as error:
        return f"tests: {error}"
    return f"tests: {bare[0]} and {len(bare) - 1} more rows have no reference (key output)" if bare else None


def stages_of(plain: dict, data: dict, validation_tokens: int) -> list[Stage]:
    """In the order in which they are made. `data` is the config group of the pair's training runs, `validation_tokens`
    the length of the answers that validate them."""
    name, pair, methods, runs = plain["run"]["name"], plain["pair"], plain["methods"], plain["run"]["dir"]

    def train(stage: str, seed: int, *overrides: str, reads: tuple[str, ...] = ()) -> Stage:
        own = stage if stage == "teacher" else f"{stage}-{seed}"
        command = ("train.py", f"experiment={pair}_{stage}", *plain["overrides"], f"seed={seed}", *overrides)
        files = tuple(file for file in (data["train_file"], data["val_file"]) if file and Path(file).is_file())
        return Stage(own, (*command, f"run.name={name}/{own}"), (*reads, *files), "student")

    teacher, stages = plain["teacher"], []
    after = ("teacher",)
    if teacher:
        after = (teacher,) if Path(teacher).is_dir() else ()
    else:
        teacher = f"{runs}/teacher/student"
        stages.append(train("teacher", 0))
    template = [f"data.{key}={data[key]}" for key in ("template", "max_prompt_tokens")]
    template += [] if data["system"] is None else [f"data.system={json.dumps(data['system'])}"]
    template += [
        f"+data.template_arguments.{key}={json.dumps(each)}" for key, each in data["template_arguments"].items()
    ]
    if "seqkd" in methods:
        command = ["-m", "minillm.generate", f"teacher={teacher}", f"data.file={data['train_file']}", *template]
        command += [
            f"max_new_tokens={plain['answer_tokens'] or validation_tokens}",
            f"limit={plain['answer_limit'] or 'null'}",
        ]
        command.append(f"run.name={name}/answers")
        prompts = (data["train_file"],) if Path(data["train_file"]).is_file() else ()
        stages.append(Stage("answers", tuple(command), (*after, *prompts), "answers.jsonl"))
    for seed in plain["seeds"]:
        if any(method.startswith("minillm") for method in methods):
            stages.append(train("start", seed))
        for method in methods:
            overrides, reads = [], after
            if method == "sft":
                reads = ()
            else:
                overrides += [f"model.teacher.source={teacher}", *plain["teacher_overrides"]]
            if method == "seqkd":
                overrides.append(f"data.train_file={runs}/answers/answers.jsonl")
                reads = (*reads, "answers")
            if method.startswith("minillm"):
                overrides.append(f"model.student={runs}/start-{seed}/student")
                reads = (*reads, f"start-{seed}")
            stages.append(train(method, seed, *overrides, reads=reads))
    students = [f"{method}-{seed}" for method in methods for seed in plain["seeds"]]
    models = [teacher, *(f"{runs}/{student}/student" for student in students)]
    command = ["evaluate.py", f"models=[{','.join(models)}]", f"teacher={teacher}", *template]
    command += [f"data.files=[{','.join(plain['tests'])}]", f"seeds={plain['test_seeds']}".replace(" ", "")]
    command += [f"max_new_tokens={plain['test_tokens'] or validation_tokens}", f"limit={plain['test_limit'] or 'null'}"]
    command += [f"batch_size={plain['test_batch_size']}", f"run.name={name}/test"]
    stages.append(Stage("test", tuple(command), (*after, *students, *plain["tests"]), "metrics.json"))
    return stages


@hydra.main(config_path="../conf", config_name="chain", version_base="1.3")
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
    records = run_chain(run_dir, stages_of(plain, data, trained.callbacks.validation.max_new_tokens))
    table = table_of(json.loads((run_dir / "test" / "metrics.json").read_text()), plain["methods"], plain["seeds"])
    out = run_dir / f"{run_dir.name}.json"
    out.write_text(json.dumps(table | {"settings": plain, "stages": records}, indent=2) + "\n")
    show_table(table)
    say(f"Wrote {out}: every figure by method and seed")


if __name__ == "__main__":
    cli.run(main, "chain")
