"""From a composed config to checked objects, all problems in one message.

First the values, for which torch is not imported: a wrong one is answered at once. Then what needs Lightning or the
machine: keys of the trainer, the logger, the callbacks, how many devices there are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.reward import Reward
from minillm.train.rules import GROUPS, SETTINGS, root_problems, rule_problems
from minillm.train.start import SupervisedStart

if TYPE_CHECKING:
    import lightning as L


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
    reward: Reward
    strategy: Parallel
    callbacks: dict[str, L.Callback]
    plain: dict  # of config.yaml: the objects as plain values, and what is not theirs (seeds, trainer, logger, ...)

    @property
    def run_dir(self) -> Path:
        return Path(self.plain["run"]["dir"])

    @property
    def answer_tokens(self) -> int:
        """Of the longest answer that is trained on."""
        given, drawn = min(self.data.longest, self.data.max_response_tokens), self.sampler.max_new_tokens
        if isinstance(self.regime, Supervised):
            return given
        return max(given, drawn) if self.data.on_policy < 1 else drawn

    @property
    def accumulated(self) -> int:
        """How many batches of one rank the trainer accumulates; on-policy the module makes its own micro-batches."""
        devices = self.strategy.data_parallel_size
        return self.regime.microbatches(devices) // devices if isinstance(self.regime, Supervised) else 1


def check_config(cfg: DictConfig | dict, *, elsewhere: bool = False) -> Settings:
    """Check a config, composed or plain, and construct the settings. elsewhere: the run would be on another machine.

    Raises:
        ConfigError: with every problem found, each as what, got, wanted, where.
    """
    plain = cfg if isinstance(cfg, dict) else resolved(cfg)
    return assemble(plain, check_values(plain, elsewhere=elsewhere))


def check_values(plain: dict, command: str = "", *, elsewhere: bool = False, files: bool = False) -> dict[str, Any]:
    """The object of each of SETTINGS. Imports no torch, unless a class of one's own does or the GPUs must be counted.
    files: also look whether all files and directories are there.

    Raises:
        ConfigError: unknown keys, wrong types and values, groups that do not go together; secrets alone, because other
            problems would show values.
    """
    if secrets := secret_problems(plain, command):
        raise ConfigError(secrets)
    if missing := [group for group in (*GROUPS, *SETTINGS) if not isinstance(plain.get(group), dict)]:
        raise ConfigError(f"{group}={plain.get(group)!r}: missing; wanted a config group" for group in missing)
    problems = root_problems(plain)
    built = {group: collect(problems, group, plain[group]) for group in SETTINGS}
    if not problems:
        problems = rule_problems(built, plain)
    if built["model"] and not elsewhere:
        problems += built["model"].missing_here()
    if files and built["model"]:
        problems += built["model"].missing_files()
    if files and built["data"] and built["regulariser"]:
        problems += [f"data.{each}" for each in built["data"].missing(corpus=built["regulariser"].on)]
    if problems:
        raise ConfigError(problems)
    return built


def assemble(plain: dict, built: Mapping[str, Any], *, command: str = "", began: float | None = None) -> Settings:
    """Settings of objects that are there: the callbacks are made, trainer and logger are checked.

    Args:
        plain: the whole config. built: the object of each of SETTINGS. command, began: for the model card and
            wall_seconds.

    Raises:
        ConfigError: with every problem.
    """
    problems = [*rule_problems(built, plain), *built["strategy"].problems()]
    problems += node_problems(plain["trainer"], "trainer")
    problems += node_problems(plain["logger"], "logger", supplied=("run_dir", "name", "settings"))
    run_dir, typed = Path(plain["run"]["dir"]), {"plain": plain, "command": command}
    supplied = {
        "validation": {"run_dir": run_dir, "seed": plain["eval_seed"]},
        "checkpoints": {"run_dir": run_dir},
        "record": {"run_dir": run_dir, "began": time.time() if began is None else began, **typed},
        "report": {"run_dir": run_dir},
    }
    # In this order, whichever key a yaml names first: what is saved and recorded has been validated before.
    order = dict.fromkeys([*supplied, *plain["callbacks"]])
    callbacks = {
        name: collect(problems, f"callbacks.{name}", node, **supplied.get(name, {}))
        for name in order
        if (node := plain["callbacks"].get(name))
    }
    if problems:
        raise ConfigError(problems)
    return Settings(**built, callbacks=callbacks, plain=plain)
