"""The stages of the paper as commands, and what each of them reads and is set to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from minillm.common.changes import flat
from minillm.common.errors import ConfigError
from minillm.common.overrides import compose_in_conf, override
from minillm.common.stored import resolved
from minillm.experiments.children import Stage
from minillm.train.settings import check_config

METHODS = ("sft", "kd", "seqkd", "minillm_nopt", "minillm")
_MODEL_PATHS = ("source", "adapter", "tokenizer")


def recipe_of(plain: dict, stage: str) -> list[str]:
    """The words that make a stage: its recipe, the pair, and the pair's models where the chain names them."""
    student = plain["model"]["teacher" if stage == "teacher" else "student"]
    own = [override("model.student", student)] if student and not stage.startswith("minillm") else []
    return [f"recipe={stage}", f"pair={plain['pair']}", *own]


def stages_of(plain: dict, data: dict, validation_tokens: int) -> list[Stage]:
    """Each after what it reads. `plain` are the chain's settings, `data` is the config group of the pair's
    training runs, `validation_tokens` the length of the answers that validate them."""
    name, methods, runs = plain["run"]["name"], plain["methods"], plain["run"]["dir"]

    date = [override("data.date", data["date"])] if data["date"] else []

    def train(stage: str, seed: int, *overrides: str, reads: tuple[str, ...] = ()) -> Stage:
        own = stage if stage == "teacher" else f"{stage}-{seed}"
        command = ("train.py", *recipe_of(plain, stage), *plain["overrides"], *date, f"seed={seed}", *overrides)
        return Stage(own, (*command, f"run.name={name}/{own}"), reads, "student")

    teacher, stages = plain["teacher"], []
    after = ("teacher",)
    if teacher:
        after = (teacher,) if Path(teacher).expanduser().exists() else ()
    else:
        teacher = f"{runs}/teacher/student"
        stages.append(train("teacher", 0))
    template = [override(f"data.{key}", data[key]) for key in ("template", "max_prompt_tokens", "system", "bos")]
    template += date
    template += [
        override(f"+data.template_arguments.{key}", each) for key, each in flat(data["template_arguments"]).items()
    ]
    if "seqkd" in methods:
        command = ["-m", "minillm.generate", override("teacher", teacher), override("data.file", data["train_file"])]
        tokens = validation_tokens if plain["answer_tokens"] is None else plain["answer_tokens"]
        command += [*template, f"max_new_tokens={tokens}", override("limit", plain["answer_limit"])]
        command.append(f"run.name={name}/answers")
        prompts = (data["train_file"],) if Path(data["train_file"]).expanduser().is_file() else ()
        stages.append(Stage("answers", tuple(command), (*after, *prompts), "answers.jsonl"))
    for seed in plain["seeds"]:
        if any(method.startswith("minillm") for method in methods):
            stages.append(train("start", seed))
        for method in methods:
            overrides, reads = [], after
            if method == "sft":
                reads = ()
            else:
                overrides += [override("model.teacher.source", teacher), *plain["teacher_overrides"]]
            if method == "seqkd":
                overrides.append(override("data.train_file", f"{runs}/answers/answers.jsonl"))
                reads = (*reads, "answers")
            if method.startswith("minillm"):
                overrides.append(override("model.student", f"{runs}/start-{seed}/student"))
                reads = (*reads, f"start-{seed}")
            stages.append(train(method, seed, *overrides, reads=reads))
    students = [f"{method}-{seed}" for method in methods for seed in plain["seeds"]]
    models = [teacher, *(f"{runs}/{student}/student" for student in students)]
    tokens = validation_tokens if plain["test_tokens"] is None else plain["test_tokens"]
    command = ["evaluate.py", override("models", models), override("teacher", teacher), *template]
    command += [override("data.files", plain["tests"]), override("seeds", plain["test_seeds"])]
    command += [f"max_new_tokens={tokens}", override("limit", plain["test_limit"])]
    command += [f"batch_size={plain['test_batch_size']}", f"run.name={name}/test"]
    stages.append(Stage("test", tuple(command), (*after, *students, *plain["tests"]), "metrics.json"))
    return stages


def with_settings(stages: list[Stage], run_dir: Path) -> list[Stage]:
    """The same with the config that each command will compose, and with the local files that it reads by that.

    Raises:
        ConfigError: what a training stage would refuse, each with the first stage that would.
    """
    found, made, problems = [], [(run_dir / stage.name).resolve() for stage in stages], {}
    for stage in stages:
        words = [word for word in stage.command[1:] if "=" in word]
        cfg = compose_in_conf(stage.config, [*words, override("run.dir", str(run_dir / stage.name))])
        settings = resolved(cfg)
        files = []
        if stage.config == "train":
            try:
                check_config(OmegaConf.create(settings | {"resume": "auto"}), elsewhere=True)
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, stage.name)
            files = [
                asked
                for asked in _read_in_training(settings)
                if (path := Path(asked).expanduser()).exists()
                and not any(path.resolve().is_relative_to(folder) for folder in made)
            ]
        found.append(replace(stage, settings=settings, reads=tuple(dict.fromkeys((*stage.reads, *files)))))
    if problems:
        raise ConfigError(f"{stage}: {problem}" for problem, stage in problems.items())
    return found


def _read_in_training(settings: dict) -> Iterator[str]:
    """What a training config names that may be a file or a directory."""
    data, regulariser = settings["data"], settings["regulariser"]
    yield from (each for each in (data["train_file"], data["val_file"]) if each)
    if regulariser["enabled"] and regulariser["coefficient"] > 0 and data["corpus_file"]:
        yield data["corpus_file"]
    for key, value in flat(settings["model"]).items():
        if isinstance(value, str) and (key in ("student", "teacher") or key.rpartition(".")[2] in _MODEL_PATHS):
            yield value
