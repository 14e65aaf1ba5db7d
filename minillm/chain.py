"""python -m minillm.chain: the paper's runs, each once what it needs is there, and its table. See conf/chain/.

A stage is a command of its own (train.py, minillm.generate, evaluate.py). chain.json records its settings and the
fingerprints of what it read and made. A finished stage is skipped; one that was cut off goes on.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from minillm.common import cli
from minillm.common.changes import flat, within
from minillm.common.checks import value_problems
from minillm.common.console import say, show_facts
from minillm.common.errors import ConfigError, DataError
from minillm.common.files import write_whole
from minillm.common.labels import name_problems
from minillm.common.overrides import compose_in_conf, override
from minillm.common.secret import secret_problems
from minillm.common.stored import resolved
from minillm.data import read_records
from minillm.experiments.stages import Stage, begun_on, run_chain
from minillm.train.settings import check_config

_NAMES = {"teacher": "Teacher", "sft": "SFT w/o KD", "kd": "KD", "seqkd": "SeqKD",
          "minillm_nopt": "MiniLLM w/o L_PT", "minillm": "MiniLLM"}  # fmt: skip
METHODS = tuple(_NAMES)[1:]
OWN_PAIR = "use pair=own model.student=DIR_OR_ID model.teacher=DIR_OR_ID"
# Keys, by their last part, that may name a file or a directory which a command reads.
_PATHS = ("train_file", "val_file", "corpus_file", "file", "files", "models", "student", "teacher", "source", "adapter",
          "tokenizer")  # fmt: skip
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
    missing = sorted(_KINDS.keys() & OmegaConf.missing_keys(cfg))
    problems = [f"{key}: missing; wanted {key}=..., see conf/chain/chain.yaml" for key in missing]
    problems += value_problems(plain, {key: kind for key, kind in _KINDS.items() if key not in missing}, _POSITIVE)
    if problems:
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


def composed(config: str, words: Sequence[str]) -> DictConfig:
    """Raises ConfigError: an override has no place there."""
    try:
        return compose_in_conf(config, words)
    except HydraException as error:
        text = f"overrides, in {' '.join(words[:2])}: {cli.explain(error, config)}"
        raise ConfigError(text + (f"\nFor other models {OWN_PAIR}" if "model." in text else "")) from error


def recipe_of(plain: dict, stage: str) -> list[str]:
    """The words that make a stage: its recipe, the pair, and the pair's models where the chain names them."""
    student = plain["model"]["teacher" if stage == "teacher" else "student"]
    own = [override("model.student", student)] if student and not stage.startswith("minillm") else []
    return [f"recipe={stage}", f"pair={plain['pair']}", *own]


def stages_of(plain: dict, data: dict, validation_tokens: int) -> list[Stage]:
    """In an order in which each can be made; `with_settings` says what each reads. `plain` are the chain's settings,
    `data` is the config group of the pair's training runs, `validation_tokens` the length of the answers that validate
    them."""
    name, methods, seeds, runs = plain["run"]["name"], plain["methods"], plain["seeds"], plain["run"]["dir"]
    date = [override("data.date", data["date"])] if data["date"] else []
    prompts = [override(f"data.{key}", data[key]) for key in ("template", "max_prompt_tokens", "system", "bos")]
    arguments = flat(data["template_arguments"]).items()
    prompts += date + [override(f"+data.template_arguments.{key}", each) for key, each in arguments]

    def train(stage: str, seed: int, *overrides: str) -> Stage:
        own = stage if stage == "teacher" else f"{stage}-{seed}"
        command = ("train.py", *recipe_of(plain, stage), *plain["overrides"], *date, f"seed={seed}", *overrides)
        return Stage(own, (*command, f"run.name={name}/{own}"), (), "student")

    def answer(stage: str, result: str, *words: str, tokens: str, limit: str) -> Stage:
        longest = validation_tokens if plain[tokens] is None else plain[tokens]
        command = (*words, *prompts, f"max_new_tokens={longest}", override("limit", plain[limit]))
        return Stage(stage, (*command, f"run.name={name}/{stage}"), (), result)

    teacher = plain["teacher"] or f"{runs}/teacher/student"
    stages = [] if plain["teacher"] else [train("teacher", 0)]
    if "seqkd" in methods:
        words = ("-m", "minillm.generate", override("teacher", teacher), override("data.file", data["train_file"]))
        stages.append(answer("answers", "answers.jsonl", *words, tokens="answer_tokens", limit="answer_limit"))
    for seed in seeds:
        if any(method.startswith("minillm") for method in methods):
            stages.append(train("start", seed))
        for method in methods:
            overrides = []
            if method != "sft":
                overrides = [override("model.teacher.source", teacher), *plain["teacher_overrides"]]
            if method == "seqkd":
                overrides.append(override("data.train_file", f"{runs}/answers/answers.jsonl"))
            if method.startswith("minillm"):
                overrides.append(override("model.student", f"{runs}/start-{seed}/student"))
            stages.append(train(method, seed, *overrides))
    models = [teacher, *(f"{runs}/{method}-{seed}/student" for method in methods for seed in seeds)]
    words = ("evaluate.py", override("models", models), override("teacher", teacher))
    words += (override("data.files", plain["tests"]), override("seeds", plain["test_seeds"]))
    words += (f"batch_size={plain['test_batch_size']}",)
    return [*stages, answer("test", "metrics.json", *words, tokens="test_tokens", limit="test_limit")]


def with_settings(stages: list[Stage], run_dir: Path) -> list[Stage]:
    """The same with the config that each command will compose, and with the stages and local files that it reads.

    Raises:
        ConfigError: what a training stage would refuse, each with the first stage that would.
    """
    found, problems, folders = [], {}, {stage.name: (run_dir / stage.name).resolve() for stage in stages}
    for stage in stages:
        words = [word for word in stage.command[1:] if "=" in word]
        settings = resolved(composed(stage.config, [*words, override("run.dir", str(run_dir / stage.name))]))
        found.append(replace(stage, settings=settings, reads=tuple(dict.fromkeys(_reads(settings, folders)))))
        try:
            if stage.config == "train":
                check_config(settings | {"resume": "auto"}, elsewhere=True)
        except ConfigError as error:
            problems |= {each: f"{stage.name}: {each}" for each in error.problems if each not in problems}
    if problems:
        raise ConfigError(problems.values())
    return found


def _reads(settings: dict, folders: dict[str, Path]) -> Iterator[str]:
    """What a config names: the stages in whose `folders` it is, and files and directories that are there."""
    regulariser = settings.get("regulariser")
    unread = ["data.corpus_file"] if regulariser and not regulariser["enabled"] * regulariser["coefficient"] else []
    for key, value in flat(settings).items():
        if key.rpartition(".")[2] in _PATHS and key not in unread:
            for text in value if isinstance(value, list) else [value]:
                path = Path(str(text)).expanduser()
                made = [name for name, folder in folders.items() if path.resolve().is_relative_to(folder)]
                if text is not None and (made or path.exists()):
                    yield made[0] if made else text


def table_of(results: dict, methods: list[str], seeds: list[int]) -> dict:
    """The paper's Table 1 from evaluate.py's metrics.json: method -> seed -> test set -> figure (mean over the seeds of
    sampling), of the first decoding. The students are <method>-<seed>/student."""
    by_test = {Path(file).stem: by_model for file, by_model in next(iter(results["answers"].values())).items()}
    students = {Path(source).parent.name: source for source in results["models"] if source != results["teacher"]}

    def means(source: str) -> dict[str, dict[str, float]]:
        return {
            test: {name: each["mean"] for name, each in by_model[source]["figures"].items()}
            for test, by_model in by_test.items()
        }

    table = {method: {str(seed): means(students[f"{method}-{seed}"]) for seed in seeds} for method in methods}
    return {"methods": {"teacher": {"-": means(results["teacher"])}} | table, "tests": list(by_test)}


def show_table(table: dict) -> None:
    """A row for each method, a column for each test set and their mean: mean Rouge-L over training seeds with its
    deviation."""
    rows = []
    for method, seeds in table["methods"].items():
        columns = [[run[test]["rouge_l"] for run in seeds.values()] for test in table["tests"]]
        columns.append([mean(values) for values in zip(*columns, strict=True)])
        cells = [f"{mean(each):.1f}" + (f" ± {stdev(each):.1f}" if len(each) > 1 else "") for each in columns]
        rows.append((_NAMES[method], cells))
    names = [name.removeprefix("test_") for name in (*table["tests"], "mean")]
    show_facts("Rouge-L, mean and deviation over training seeds", names, rows, ())


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
