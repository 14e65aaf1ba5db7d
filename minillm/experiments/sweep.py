"""A sweep (train.py -m) around its trials: checks before the first, the summary after the last."""

from __future__ import annotations

import atexit
import json
import shutil
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from minillm.common import cli
from minillm.common.child import importable
from minillm.common.console import say
from minillm.common.errors import ConfigError, check
from minillm.common.numbers import count, duration
from minillm.common.read import TRIALS, higher_is_better
from minillm.common.secret import secret_problems
from minillm.experiments.trials import DONE, Outcome, better


class AroundSweep(Callback):
    """Hydra calls it in the process of the sweep. Of an exception in here Hydra would make a warning, so errors end the
    process."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            check_sweep(config)
        except ConfigError as error:
            cli.fail(f"Error: {error}")
        importable()  # for the processes of a launcher
        shutil.rmtree(folder / TRIALS, ignore_errors=True)
        atexit.register(cli.free, folder.absolute(), "multirun.yaml")  # of a sweep that Hydra refused
        _name_what_is_swept(config)

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        if wrong := report(Path(config.hydra.sweep.dir), str(config.optimized_metric)):
            cli.fail(f"Error: {wrong}")


def check_sweep(config: DictConfig) -> None:
    """Raises ConfigError: a secret, a direction that contradicts `optimized_metric`, the directory of a single run."""
    # With hydra.overrides and hydra.sweeper.params: Hydra's sweeper writes all of it to multirun.yaml.
    if secrets := secret_problems(OmegaConf.to_container(config, resolve=False)):
        raise ConfigError(secrets)
    folder, figure = Path(config.hydra.sweep.dir), str(config.optimized_metric)
    direction, higher = config.hydra.sweeper.get("direction"), higher_is_better(figure)
    given, wanted = getattr(direction, "name", direction), better(figure)
    check(
        (
            None in (direction, higher) or given == wanted,
            f"hydra.sweeper.direction={given}: of {figure} (optimized_metric) {'more' if higher else 'less'} is "
            f"better; wanted {wanted}",
        ),
        (
            not (folder / "config.yaml").exists(),
            f"run.name={config.run.name}: {folder} holds a single run; choose another name for the sweep",
        ),
    )


def _name_what_is_swept(config: DictConfig) -> None:
    """Leave what is fixed out of the names of the trials' directories, see conf/train.yaml."""
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    last = {each.key_or_group: each for each in overrides}  # of two values for a key the later one counts
    fixed = {key for key, each in last.items() if not each.is_sweep_override()}
    names = ",".join(sorted(fixed - set(config.hydra.sweeper.get("params") or ())))
    with read_write(config), open_dict(config):  # Hydra composes each job with these
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")


def report(folder: Path, figure: str) -> str | None:
    """Show all trials of a sweep by their `figure`; returns what is wrong with them, or None."""
    outcomes = [Outcome(**json.loads(file.read_text(encoding="utf-8"))) for file in (folder / TRIALS).glob("*.json")]
    outcomes.sort(key=lambda each: each.number)
    table = Table(title=f"Sweep {folder}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("trial", "", figure, "time"):
        table.add_column(heading, overflow="fold")
    for each in outcomes:
        value = "-" if each.figure is None else count(each.figure, 4)
        table.add_row(
            escape(each.name), each.state, value, "was there" if each.seconds is None else duration(each.seconds)
        )
    get_console().print(table)
    known = [each for each in outcomes if each.figure is not None]
    higher = higher_is_better(figure)
    if known and higher is not None:
        best = (max if higher else min)(known, key=lambda each: each.figure)
        say(f"Best {figure}: {count(best.figure, 4)}, {folder / best.name}")
    say(f"What each setting did: python -m minillm.compare {folder}")
    wrong = [each for each in outcomes if each.state != DONE]
    if not wrong:
        return None
    lines = [f"  - {each.name}: {each.state}. " + each.text.replace("\n", "\n  ") for each in wrong]
    return "\n".join([f"{len(wrong)} of {len(outcomes)} trials did not finish; the same command goes on:", *lines])
