"""The stages of the paper as commands, and what each of them reads and is set to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig

from minillm.common import cli
from minillm.common.changes import flat
from minillm.common.errors import ConfigError
from minillm.common.overrides import compose_in_conf, override
from minillm.common.stored import resolved
from minillm.experiments.stages import Stage
from minillm.train.settings import check_config

METHODS = ("sft", "kd", "seqkd", "minillm_nopt", "minillm")
OWN_PAIR = "use pair=own model.student=DIR_OR_ID model.teacher=DIR_OR_ID"
_MODEL_PATHS = ("student", "teacher", "source", "adapter", "tokenizer")


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
    """Each after what it reads. `plain` are the chain's settings, `data` is the config group of the pair's
    training runs, `validation_tokens` the length of the answers that validate them."""
    name, methods, seeds, runs = plain["run"]["name"], plain["methods"], plain["seeds"], plain["run"]["dir"]
    date = [override("data.date", data["date"])] if data["date"] else []
    prompts = [override(f"data.{key}", data[key]) for key in ("template", "max_prompt_tokens", "system", "bos")]
    arguments = flat(data["template_arguments"]).items()
    prompts += date + [override(f"+data.template_arguments.{key}", each) for key, each in arguments]

    def train(stage: str, seed: int, *overrides: str, reads: Sequence[str] = ()) -> Stage:
        own = stage if stage == "teacher" else f"{stage}-{seed}"
        command = ("train.py", *recipe_of(plain, stage), *plain["overrides"], *date, f"seed={seed}", *overrides)
        return Stage(own, (*command, f"run.name={name}/{own}"), tuple(reads), "student")

    def answer(*words: str, tokens: str, limit: str) -> tuple[str, ...]:
        longest = validation_tokens if plain[tokens] is None else plain[tokens]
        return (*words, *prompts, f"max_new_tokens={longest}", override("limit", plain[limit]))

    teacher, stages, after = plain["teacher"] or f"{runs}/teacher/student", [], ["teacher"]
    if plain["teacher"]:
        after = [teacher] if _exists(teacher) else []
    else:
        stages.append(train("teacher", 0))
    if "seqkd" in methods:
        file = data["train_file"]
        words = ("-m", "minillm.generate", override("teacher", teacher), override("data.file", file))
        command = (*answer(*words, tokens="answer_tokens", limit="answer_limit"), f"run.name={name}/answers")
        stages.append(Stage("answers", command, (*after, *filter(_exists, [file])), "answers.jsonl"))
    for seed in seeds:
        if any(method.startswith("minillm") for method in methods):
            stages.append(train("start", seed))
        for method in methods:
            if method == "sft":
                stages.append(train(method, seed))
                continue
            overrides, reads = [override("model.teacher.source", teacher), *plain["teacher_overrides"]], [*after]
            if method == "seqkd":
                overrides.append(override("data.train_file", f"{runs}/answers/answers.jsonl"))
                reads.append("answers")
            if method.startswith("minillm"):
                overrides.append(override("model.student", f"{runs}/start-{seed}/student"))
                reads.append(f"start-{seed}")
            stages.append(train(method, seed, *overrides, reads=reads))
    students = [f"{method}-{seed}" for method in methods for seed in seeds]
    models = [teacher, *(f"{runs}/{student}/student" for student in students)]
    words = ("evaluate.py", override("models", models), override("teacher", teacher))
    words += (override("data.files", plain["tests"]), override("seeds", plain["test_seeds"]))
    words += (f"batch_size={plain['test_batch_size']}", f"run.name={name}/test")
    command = answer(*words, tokens="test_tokens", limit="test_limit")
    return [*stages, Stage("test", command, (*after, *students, *plain["tests"]), "metrics.json")]


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _exists(text: str) -> bool:
    return _path(text).exists()


def with_settings(stages: list[Stage], run_dir: Path) -> list[Stage]:
    """The same with the config that each command will compose, and with the local files that it reads by that.

    Raises:
        ConfigError: what a training stage would refuse, each with the first stage that would.
    """
    found, made, problems = [], [(run_dir / stage.name).resolve() for stage in stages], {}
    for stage in stages:
        words = [word for word in stage.command[1:] if "=" in word]
        settings = resolved(composed(stage.config, [*words, override("run.dir", str(run_dir / stage.name))]))
        files = list(filter(_exists, _read_in_training(settings))) if stage.config == "train" else []
        files = [each for each in files if not any(_path(each).resolve().is_relative_to(folder) for folder in made)]
        found.append(replace(stage, settings=settings, reads=tuple(dict.fromkeys((*stage.reads, *files)))))
        try:
            if stage.config == "train":
                check_config(settings | {"resume": "auto"}, elsewhere=True)
        except ConfigError as error:
            problems |= {each: f"{stage.name}: {each}" for each in error.problems if each not in problems}
    if problems:
        raise ConfigError(problems.values())
    return found


def _read_in_training(settings: dict) -> Iterator[str]:
    """What a training config names that may be a file or a directory."""
    data, regulariser = settings["data"], settings["regulariser"]
    corpus = data["corpus_file"] if regulariser["enabled"] and regulariser["coefficient"] > 0 else None
    yield from filter(None, (data["train_file"], data["val_file"], corpus))
    for key, value in flat(settings["model"]).items():
        if isinstance(value, str) and key.rpartition(".")[2] in _MODEL_PATHS:
            yield value
