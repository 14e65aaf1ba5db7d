"""From a composed config to (module, datamodule, trainer). All checks come first, all problems in one message."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from omegaconf import DictConfig, OmegaConf

from minillm import preflight
from minillm.callbacks import Profile
from minillm.checks import collect, construct, describe, matches, node_problems
from minillm.data import Sources, read_documents
from minillm.datamodule import DistillationDataModule
from minillm.errors import ConfigError, check, nearest
from minillm.linear_loss import LinearLoss
from minillm.loggers import MetricsCSV
from minillm.models import ModelPair, Pair
from minillm.modules import OnPolicy, OnPolicyDistillation, SupervisedStart
from minillm.objectives import MiniLLM, PretrainLoss
from minillm.optim import Optim
from minillm.sampling import Sampler

_VALUES = ("seed", "eval_seed", "resume", "optimized_metric", "profile", "preflight")
_GROUPS = ("run", "strategy", "trainer", "callbacks", "logger")
_PLAIN = {"run": ("name", "dir"), "strategy": ("strategy", "devices", "num_nodes")}  # groups without a constructor
_SETTINGS = ("model", "data", "sampler", "regulariser", "objective", "linear_loss", "regime", "optim", "start")


@dataclass(frozen=True)
class Settings:
    """The config as checked objects; nothing reads the config after this."""

    model: ModelPair
    data: Sources
    sampler: Sampler
    regulariser: PretrainLoss
    objective: MiniLLM
    linear_loss: LinearLoss
    regime: OnPolicy
    optim: Optim
    start: SupervisedStart
    callbacks: dict[str, L.Callback]


@dataclass(frozen=True)
class Run:
    module: OnPolicyDistillation
    datamodule: DistillationDataModule
    trainer: L.Trainer
    ckpt_path: Path | None


def check_config(cfg: DictConfig, *, command: str = "", began: float | None = None) -> Settings:
    """Types, unknown keys, values and cross-field rules.

    Raises:
        ConfigError: with every problem found, each as what, got, wanted, where.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    if missing := [group for group in (*_GROUPS, *_SETTINGS) if not isinstance(plain.get(group), dict)]:
        raise ConfigError(f"{group}={plain.get(group)!r}: missing; wanted a config group" for group in missing)
    problems = _root_problems(plain)
    problems += node_problems(plain["trainer"], "trainer")
    problems += node_problems(plain["logger"], "logger", supplied=("run_dir", "name", "settings"))
    run_dir = Path(plain["run"]["dir"])
    extra = {
        "callbacks.validation": {"run_dir": run_dir, "seed": plain["eval_seed"]},
        "callbacks.checkpoints": {"run_dir": run_dir},
        "callbacks.record": {
            "run_dir": run_dir,
            "began": time.time() if began is None else began,
            "card": {"name": plain["run"]["name"], "teacher": _teacher_name(plain["model"]), "command": command},
        },
    }
    built = {group: collect(problems, group, plain[group]) for group in _SETTINGS}
    nodes = {name: node for name, node in plain["callbacks"].items() if node}
    callbacks = {
        name: collect(problems, f"callbacks.{name}", node, **extra.get(f"callbacks.{name}", {}))
        for name, node in nodes.items()
    }
    problems += _cross_field_problems(built, callbacks, plain)
    if problems:
        raise ConfigError(problems)
    if plain["profile"]:
        callbacks["profile"] = Profile(run_dir)
    return Settings(**built, callbacks=callbacks)


def build(cfg: DictConfig, settings: Settings) -> Run:
    """Load the models and the data, make the trainer, write the resolved config into the run directory.

    Raises:
        ModelError, DataError, ConfigError: see `ModelPair.load` and `Sources`.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    run_dir = Path(plain["run"]["dir"])
    trainer = construct(
        plain["trainer"],
        **plain["strategy"],
        max_epochs=-1,
        logger=MetricsCSV(run_dir / "metrics.csv"),
        callbacks=list(settings.callbacks.values()),
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )
    # Files first: a mistyped name should not cost the download of a teacher.
    records = settings.data.records()
    documents = read_documents(settings.data.corpus_file) if settings.regulariser.on else None
    pair = settings.model.load(trainer.strategy.root_device)
    check_lengths(settings, pair)
    train_prompts, val_prompts = settings.data.prompts(*records, pair)
    corpus = None if documents is None else settings.data.corpus(documents, pair)
    datamodule = DistillationDataModule(
        train_prompts,
        val_prompts,
        corpus,
        rollouts=settings.regime.rollouts,
        steps_per_rollout=settings.regime.steps_per_rollout,
        corpus_batch_size=settings.regulariser.batch_size,
        seed=plain["seed"],
    )
    if settings.start.responses == "reference" and settings.start.steps and not train_prompts.has_references:
        raise ConfigError(
            "start.responses=reference: not every training prompt has a reference; use start.responses=teacher"
        )
    last = run_dir / "checkpoints" / "last.ckpt"
    ckpt_path = last if plain["resume"] and last.exists() else None
    page = None if ckpt_path else preflight.begin(settings, plain, pair, train_prompts, val_prompts, corpus)
    # Only now, with everything loaded, is the run directory taken: a mistake can be mended under the same run.name.
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    if page:
        preflight.write(page, run_dir)
    if plain["logger"].get("_target_"):
        wandb = construct(plain["logger"], run_dir=run_dir, name=plain["run"]["name"], settings=plain)
        trainer.loggers = [*trainer.loggers, wandb]
    module = OnPolicyDistillation(
        pair,
        settings.objective,
        settings.sampler,
        settings.regulariser,
        settings.linear_loss,
        settings.optim,
        settings.regime,
        settings.start,
        plain["seed"],
    )
    return Run(module, datamodule, trainer, ckpt_path)


def check_lengths(settings: Settings, pair: Pair) -> None:
    """Raises ConfigError where prompt and answer, or a corpus block, exceed a model's positions."""
    validation = settings.callbacks.get("validation")
    answer = max(settings.sampler.max_new_tokens, validation.max_new_tokens if validation else 0)
    longest = {
        "data.max_prompt_tokens + max_new_tokens of sampler or validation": settings.data.max_prompt_tokens + answer
    }
    if settings.start.steps and settings.start.responses == "reference":
        reference = settings.data.max_prompt_tokens + settings.data.max_response_tokens
        longest["data.max_prompt_tokens + data.max_response_tokens"] = reference
    if settings.regulariser.on:
        longest["data.block_size"] = settings.data.block_size
    limits = [network.config.max_position_embeddings for network in (pair.student, pair.teacher.network)]
    check(
        *(
            (length <= min(limits), f"{name}={length}: the models have {min(limits)} positions; lower them")
            for name, length in longest.items()
        )
    )


def _root_problems(plain: dict) -> list[str]:
    wanted = {"seed": int, "eval_seed": int, "optimized_metric": str, "profile": bool, "preflight": bool}
    problems = [
        f"{key}={plain[key]!r}: wanted {describe(kind)}"
        for key, kind in wanted.items()
        if not matches(plain[key], kind)
    ]
    known = {"": (*_VALUES, *_GROUPS, *_SETTINGS)} | {f"{group}.": keys for group, keys in _PLAIN.items()}
    for prefix, keys in known.items():
        given = plain[prefix[:-1]] if prefix else plain
        problems += [f"{prefix}{key}: no such key; {nearest(key, keys)}" for key in given if key not in keys]
    name = plain["run"]["name"]
    if not isinstance(name, str) or not name or re.search(r"[=,\[\](){}\s]", name) or name.startswith(("/", ".")):
        problems.append(f"run.name={name!r}: wanted a relative path without = , spaces or brackets")
    run_dir = Path(plain["run"]["dir"])
    if (run_dir / "config.yaml").exists() and not plain["resume"]:
        problems.append(
            f"run.name={name}: {run_dir} already holds a run; choose another name, go on with resume=auto, or delete it"
        )
    if plain["resume"] not in (None, "auto"):
        problems.append(f"resume={plain['resume']!r}: wanted null or auto")
    return problems


def _cross_field_problems(built: dict, callbacks: dict, plain: dict) -> list[str]:
    data, regulariser, start, regime = (built[name] for name in ("data", "regulariser", "start", "regime"))
    problems = []
    if data and regulariser and regulariser.on and data.corpus_file is None:
        problems.append("data.corpus_file=null: the regulariser needs a corpus; name a file or set regulariser=none")
    if start and regime and start.steps and regime.rollouts % start.minibatch_size:
        problems.append(
            f"start.minibatch_size={start.minibatch_size} does not divide regime.rollouts={regime.rollouts}; "
            "use a divisor"
        )
    record = callbacks.get("record")
    if "record" not in callbacks:
        problems.append(
            "callbacks.record=null: it writes metrics.json and student/; wanted conf/callbacks/default.yaml's"
        )
    if record and record.export == "best" and not {"checkpoints", "validation"} <= callbacks.keys():
        problems.append(
            "callbacks.record.export=best: needs callbacks.checkpoints and callbacks.validation; set it to last"
        )
    precision = plain["trainer"].get("precision")
    if precision not in ("32-true", "bf16-mixed"):
        problems.append(
            f"trainer.precision={precision}: wanted 32-true or bf16-mixed; the weights' type is model.dtype"
        )
    if (
        built["model"]
        and built["model"].attention == "flash_attention_2"
        and built["model"].dtype in ("auto", "float32")
    ):
        problems.append("model.attention=flash_attention_2: works in half types only; wanted model.dtype=bfloat16")
    teacher = getattr(built["model"], "teacher", None)
    if teacher and teacher.offload and regime and regime.teacher_states == "recompute":
        problems.append(
            "model.teacher.offload=true with regime.teacher_states=recompute: the body is away when it is needed; "
            "change one of them"
        )
    if teacher and teacher.offload and regulariser and regulariser.on and regulariser.kd_ratio > 0:
        problems.append(
            "model.teacher.offload=true with regulariser.kd_ratio > 0: the body is away when it is needed; change one "
            "of them"
        )
    student = getattr(built["model"], "student", None)
    if getattr(student, "offload", False):
        problems.append("model.student.offload=true: only a teacher's body can be away; remove it")
    devices = plain["strategy"].get("devices"), plain["strategy"].get("num_nodes")
    if devices != (1, 1):
        problems.append(
            f"strategy.devices, strategy.num_nodes={devices}: this version trains on one device; set both to 1"
        )
    return problems


def _teacher_name(model: dict) -> str:
    teacher = model.get("teacher")
    return str(teacher.get("source") if isinstance(teacher, dict) else teacher)
