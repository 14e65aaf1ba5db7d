"""A sweep (train.py -m) around its trials: checks before the first, the summary after the last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from minillm.common import cli
from minillm.common.child import importable
from minillm.common.console import say
from minillm.common.errors import ConfigError, Interrupted, MinillmError
from minillm.common.numbers import count, duration
from minillm.common.read import TRIALS, higher_is_better
from minillm.common.secret import secret_problems
from minillm.experiments.trials import DONE, Outcome

# What launchers raise when a process of theirs died (joblib, submitit); the trials in it are gone with it or go on.
_DIED = {"TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError"}
_AGAIN = 3  # times that a sweep begins again after that


def better(figure: str) -> str:
    """The direction of a sweeper; minimize for a figure of which nothing is known."""
    return "maximize" if higher_is_better(figure) else "minimize"


OmegaConf.register_new_resolver("better", better, replace=True)  # conf/sweep/optuna.yaml: hydra.sweeper.direction


class SweepStart(Callback):
    """Hydra calls it once, in the process of the sweep, before the sweeper."""

    swept: Sweep | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        try:
            SweepStart.swept = begin(config)
        except MinillmError as error:  # of an exception in a callback Hydra makes a warning
            cli.fail(f"Error: {error}")


class Sweep:
    """`folder` is the sweep's, `figure` its optimized_metric."""

    def __init__(self, folder: Path, figure: str):
        self.folder, self.figure = folder, figure

    @property
    def outcomes(self) -> list[Outcome]:
        files = (self.folder / TRIALS).glob("*.json")
        found = [Outcome(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
        return sorted(found, key=lambda outcome: outcome.number)

    def report(self) -> str | None:
        """Show all trials; returns what is wrong with them, or None."""
        outcomes = self.outcomes
        table = Table(title=f"Sweep {self.folder}", title_justify="left", box=SIMPLE_HEAD)
        for heading in ("trial", "", self.figure, "time"):
            table.add_column(heading, overflow="fold")
        for each in outcomes:
            figure = "-" if each.figure is None else count(each.figure, 4)
            state = f"{each.state} before" if each.skipped else each.state
            table.add_row(escape(each.name), state, figure, "-" if each.skipped else duration(each.seconds))
        get_console().print(table)
        known = [each for each in outcomes if each.figure is not None]
        higher = higher_is_better(self.figure)
        if known and higher is not None:
            best = (max if higher else min)(known, key=lambda each: each.figure)
            say(f"Best {self.figure}: {count(best.figure, 4)}, {self.folder / best.name}")
        say(f"What each setting did: python -m minillm.compare {self.folder}")
        wrong = [each for each in outcomes if each.state not in DONE]
        if not wrong:
            return None
        lines = [f"  - {each.name}: {each.state}. " + each.text.replace("\n", "\n  ") for each in wrong]
        return "\n".join([f"{len(wrong)} of {len(outcomes)} trials did not finish; the same command goes on:", *lines])


def begin(config: DictConfig) -> Sweep:
    """Check what concerns the sweep as a whole, forget the outcomes of the one before, and name what is swept.

    Raises:
        ConfigError: of a secret; of a direction that contradicts `optimized_metric`, and of a directory that is a
            single run's.
    """
    # With hydra.overrides and hydra.sweeper.params: Hydra's sweeper writes all of it to multirun.yaml.
    if secrets := secret_problems(OmegaConf.to_container(config, resolve=False)):
        raise ConfigError(secrets)
    folder, figure = Path(config.hydra.sweep.dir), str(config.optimized_metric)
    problems = []
    direction, higher = config.hydra.sweeper.get("direction"), higher_is_better(figure)
    given, wanted = getattr(direction, "name", direction), better(figure)
    if direction is not None and higher is not None and given != wanted:
        problems.append(
            f"hydra.sweeper.direction={given}: of {figure} (optimized_metric) "
            f"{'more' if higher else 'less'} is better; wanted {wanted}"
        )
    if (folder / "config.yaml").exists():
        problems.append(f"run.name={config.run.name}: {folder} holds a single run; choose another name for the sweep")
    if problems:
        raise ConfigError(problems)
    importable()
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    (folder / TRIALS).mkdir(parents=True)
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    last = {each.key_or_group: each for each in overrides}  # of two values for a key the later one counts
    fixed = {key for key, each in last.items() if not each.is_sweep_override()}
    fixed -= set(config.hydra.sweeper.get("params") or ())
    # A trial's directory is named by what is swept, see conf/train.yaml; Hydra composes each job with these.
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra.append(
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(fixed))}]"
        )
    return Sweep(folder, figure)


def with_report(main: Callable[[], None]) -> Callable[[], None]:
    """The @hydra.main function with the summary of a sweep after it, which raises if a trial did not finish. A sweep
    of which a launcher's process died begins again: what is finished is skipped, what is at work waited for."""

    def call() -> None:
        for left in reversed(range(_AGAIN + 1)):
            SweepStart.swept, problem = None, None
            try:
                main()
            except (MinillmError, HydraException):
                raise
            except KeyboardInterrupt:
                if SweepStart.swept is None:
                    raise
                raise Interrupted(then="the same command goes on") from None
            except Exception as error:  # whatever a launcher raises when a process of it dies
                if SweepStart.swept is None:
                    raise
                problem = error
            if not (left and type(problem).__name__ in _DIED):
                break
            say(f"A process of the launcher was killed ({type(problem).__name__}); the sweep begins again.")
        wrong = None if SweepStart.swept is None else SweepStart.swept.report()
        if wrong:
            raise MinillmError(wrong + (f"\n{type(problem).__name__}: {problem}" if problem else "")) from problem
        if problem:
            raise problem

    return call
