"""From a composed config to checked objects, all problems in one message."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from minillm.common.checks import collect, node_problems
from minillm.common.errors import ConfigError
from minillm.common.secret import secret_problems
from minillm.common.stored import resolved
from minillm.data import Sources
from minillm.models import ModelPair
from minillm.objectives import Objective, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import Parallel
from minillm.rollout import Sampler
from minillm.train.callbacks import Profile
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.rules import GROUPS, SETTINGS, cross_field_problems, root_problems
from minillm.train.start import SupervisedStart


@dataclass(frozen=True)
class Settings:
    """The config as checked objects; nothing reads the config after this."""

    model: ModelPair
    data: Sources
    sampler: Sampler
    regulariser: PretrainLoss
    objective: Objective
    linear_loss: LinearLoss
    regime: OnPolicy | Supervised
    optim: Optim
    start: SupervisedStart
    strategy: Parallel
    callbacks: dict[str, L.Callback]
    plain: dict  # of config.yaml: the objects as plain values, and what is not theirs (seeds, trainer, logger, ...)

    @property
    def run_dir(self) -> Path:
        return Path(self.plain["run"]["dir"])

    @property
    def accumulated(self) -> int:
        """How many batches of one rank the trainer accumulates; on-policy the module makes its own micro-batches."""
        devices = self.strategy.data_parallel_size
        return self.regime.microbatches(devices) // devices if isinstance(self.regime, Supervised) else 1


def check_config(
    cfg: DictConfig, *, command: str = "", began: float | None = None, elsewhere: bool = False
) -> Settings:
    """Check types, unknown keys, values, cross-field rules and, unless the run would be `elsewhere`, what this machine
    lacks; then construct the settings.

    Raises:
        ConfigError: with every problem found, each as what, got, wanted, where.
    """
    plain = resolved(cfg)
    if secrets := secret_problems(plain, command):
        raise ConfigError(secrets)  # alone: other problems would show values
    if missing := [group for group in (*GROUPS, *SETTINGS) if not isinstance(plain.get(group), dict)]:
        raise ConfigError(f"{group}={plain.get(group)!r}: missing; wanted a config group" for group in missing)
    problems = root_problems(plain)
    problems += node_problems(plain["trainer"], "trainer")
    problems += node_problems(plain["logger"], "logger", supplied=("run_dir", "name", "settings"))
    built = {group: collect(problems, group, plain[group]) for group in SETTINGS}
    if not elsewhere and built["model"]:
        problems += built["model"].missing_here()
    return assemble(plain, built, problems, command=command, began=began)


def assemble(
    plain: dict, built: dict, problems: Sequence[str] = (), *, command: str = "", began: float | None = None
) -> Settings:
    """Settings of objects that are there.

    Args:
        plain: the whole config. built: the object of each of SETTINGS, None where it could not be made. problems: those
            found so far. command, began: for the model card and wall_seconds.

    Raises:
        ConfigError: with every problem, those of the callbacks and of groups that do not go together among them.
    """
    problems = list(problems)
    run_dir = Path(plain["run"]["dir"])
    extra = {
        "callbacks.validation": {"run_dir": run_dir, "seed": plain["eval_seed"]},
        "callbacks.checkpoints": {"run_dir": run_dir},
        "callbacks.median": {"run_dir": run_dir},
        "callbacks.record": {
            "run_dir": run_dir,
            "began": time.time() if began is None else began,
            "card": {"name": plain["run"]["name"], "made_by": made_by(plain), "command": command},
        },
    }
    nodes = {name: node for name, node in plain["callbacks"].items() if node}
    callbacks = {
        name: collect(problems, f"callbacks.{name}", node, **extra.get(f"callbacks.{name}", {}))
        for name, node in nodes.items()
    }
    problems += cross_field_problems(built, callbacks, plain)
    if problems:
        raise ConfigError(problems)
    if plain["profile"]:
        callbacks["profile"] = Profile(run_dir)
    return Settings(**built, callbacks=callbacks, plain=plain)


def made_by(plain: dict) -> str:
    """One sentence for the model card."""
    student, teacher, objective = plain["model"].get("student"), plain["model"].get("teacher"), plain["objective"]
    teacher = teacher.get("source") if isinstance(teacher, dict) else teacher
    name = str(objective.get("_target_", "MiniLLM")).rpartition(".")[2]
    if name == "MiniLLM":
        return f"A student distilled from `{teacher}` by MiniLLM (reverse KL on its own samples, arXiv 2306.08543)."
    if "kd_ratio" not in objective:
        own = " on its own samples" if "inner_epochs" in (plain.get("regime") or {}) else ""
        return f"A student distilled from `{teacher}`{own} by the objective {name}."
    if isinstance(student, dict):
        pruned = any(key in student for key in ("keep_layers", "drop_layers"))
        student = student.get("source") or (f"layers of {teacher}" if pruned else "random weights")
    how = f"Fine-tuned from `{student}` on the responses of `{plain['data'].get('train_file')}`"
    if objective["kd_ratio"]:
        how += f", with the soft targets of `{teacher}` (word-level KD, ratio {objective['kd_ratio']})"
    return f"{how}."
