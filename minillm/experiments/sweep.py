"""A sweep (train.py -m): checks before its first trial, each trial a run of its own, the summary after the last.

A trial is made by a train.py of its own in its own directory: one that is killed, or breaks its CUDA context, takes
nothing with it, whichever launcher began it. A finished trial is skipped; one that was cut off goes on.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from minillm.common import cli
from minillm.common.changes import LONGER, changes, flat
from minillm.common.child import ROOT, Children, importable
from minillm.common.console import say, show_facts
from minillm.common.errors import ConfigError, Interrupted, check
from minillm.common.files import locked, write_whole
from minillm.common.numbers import count, is_finite
from minillm.common.overrides import override
from minillm.common.read import ERROR, LOG, TRIALS, higher_is_better, read_figures, read_settings
from minillm.common.secret import secret_problems
from minillm.common.stored import resolved

DONE = "finished"
_LONGEST_NAME, _LONGEST_TAG = 100, 64  # W&B refuses longer tags


def trial_name(overrides: str, number: object) -> str:
    """The name of a trial's directory: what was swept, such as `sampler.alpha-0.1+seed-2`, in characters that are safe
    in a path and as a value of Hydra. Where nothing is swept the name is the trial's number."""
    name = re.sub(r"[^\w.+-]+", "_", overrides)
    if name != overrides or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"
    return name if overrides else str(number)


def better(figure: str) -> str:
    """The direction of a sweeper; minimize for a figure of which nothing is known."""
    return "maximize" if higher_is_better(figure) else "minimize"


OmegaConf.register_new_resolver("trial_name", trial_name, replace=True)  # conf/train.yaml: hydra.sweep.subdir
OmegaConf.register_new_resolver("better", better, replace=True)  # conf/sweep/optuna.yaml: hydra.sweeper.direction


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
        # What is fixed stays out of the names of the trials' directories, see conf/train.yaml.
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        last = {each.key_or_group: each for each in overrides}  # of two values for a key the later one counts
        fixed = {key for key, each in last.items() if not each.is_sweep_override()}
        names = ",".join(sorted(fixed - set(config.hydra.sweeper.get("params") or ())))
        with read_write(config), open_dict(config):  # Hydra composes each job with these
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")

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


def run_trial(cfg: DictConfig) -> float | None:
    """Make the trial that Hydra composed, or find it made; how it ended goes to <sweep>/.trials/<number>.json. A signal
    to the sweep ends its trial, then, if both are one process, the sweep (status 75).

    Returns:
        `optimized_metric` of its metrics.json; None, which a sweeper counts as failed, where there is no finite one.
    """
    job, plain = HydraConfig.get(), resolved(cfg)
    run_dir, name, children = Path(job.runtime.output_dir), plain["optimized_metric"], Children()

    def busy(file: Path) -> None:  # a run that outlived its sweep
        say(f"{run_dir}: another process is at work there; waiting for it")

    with locked(run_dir / "lock", busy) as lock:
        found = _found(plain, run_dir)
        try:
            state, text = found or _make(plain, run_dir, children, lock)
        except OSError as error:  # of this trial's files; the others go on
            state, text = "failed", f"{error.filename or run_dir}: {error.strerror or error}"
        figure = read_figures(run_dir).get(name) if state == DONE else None
    if not is_finite(figure):
        text = text or f"no finite {name} in metrics.json"
        figure = None
    trial = {"name": run_dir.name, "state": state, "text": text, "figure": figure}
    (folder := Path(job.sweep.dir) / TRIALS).mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{job.job.num}.json", json.dumps(trial, indent=2) + "\n")
    shown = "" if figure is None else f", {name} {count(figure, 4)}"
    say(f"Trial {run_dir.name}: {state}{' before; skipped' * bool(found)}{shown}{text and f'. {text}'}")
    if children.signal and job.runtime.choices["hydra/launcher"] == "basic":
        interrupted = Interrupted(children.signal, then="the same command goes on")
        cli.fail(str(interrupted), interrupted.status)  # Hydra would keep an exception until all trials are made
    return figure


def _found(plain: dict, run_dir: Path) -> tuple[str, str] | None:
    """State and text of what an earlier sweep left: done, or made with other settings; None where there is work."""
    try:
        before, figures = read_settings(run_dir), read_figures(run_dir)
    except ValueError as error:
        return "refused", str(error)
    found = [] if before is None else changes(before, flat(plain))
    if other := [str(each) for each in found if not each.effect]:
        text = f"{run_dir} was made with other settings: {'; '.join(other)}. Delete it or choose another run.name"
        return "refused", text
    longer = any(each.effect == LONGER for each in found)
    return None if longer or figures is None else (DONE, "")


def _make(plain: dict, run_dir: Path, children: Children, lock: int) -> tuple[str, str]:
    """State and text of a trial that is made now."""
    command, log = command_of(plain, run_dir), run_dir / LOG
    (run_dir / ERROR).unlink(missing_ok=True)
    say(f"Trial {run_dir.name} begins; its output is in {log}")
    start = log.stat().st_size if log.exists() else 0
    with children:
        children.start("the trial", command, log, pass_fds=(lock,))
        _, code = children.next_ended()
    if code == 0 and read_figures(run_dir) is not None:
        return DONE, ""
    if code <= 0 or code > 128 or code == Interrupted.status:
        ended = f"by signal {-code if code < 0 else code - 128}" if code < 0 or code > 128 else "before its end"
        return "killed", f"It was ended {ended}; the same sweep goes on with it"
    text = error_in(log.read_bytes()[start:].decode(errors="replace"))
    shown = subprocess.list2cmdline([sys.executable, *command])
    write_whole(run_dir / ERROR, f"{text}\n\nThe command: {shown}\n")
    return "failed", text


def command_of(plain: dict, run_dir: Path) -> list[str]:
    """The trial as a single run, what follows the interpreter: its overrides, name, directory and place in W&B."""
    job, logger = HydraConfig.get(), plain["logger"]
    paths = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    overrides = [str(each) for each in job.overrides.task]
    own = [f"run.name={plain['run']['name']}/{run_dir.name}", override("hydra.run.dir", str(run_dir)), "resume=auto"]
    if "tags" in logger and "group" in logger:
        hidden = ("run.name=", "resume=", "logger.")
        found = [tag(each) for each in overrides if not each.lstrip("+").startswith(hidden)]
        own.append(override("logger.group", logger["group"] or plain["run"]["name"]))
        own.append(override("logger.tags", list(dict.fromkeys([*(logger["tags"] or ()), *found]))))
    return [str(ROOT / "train.py"), *(word for path in paths for word in ("--config-dir", path)), *overrides, *own]


def tag(override: str) -> str:
    """An override as a W&B tag."""
    return re.sub(r"[\\$'\"\n]", "_", override)[:_LONGEST_TAG]


def error_in(output: str) -> str:
    """The end of what a failed run printed: its own message, or the last line of a traceback; never empty."""
    lines = output.strip().splitlines() or ["There is no output"]
    starts = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    return "\n".join(lines[starts[-1] if starts else -1 :])[:2000]


def report(folder: Path, figure: str) -> str | None:
    """Show all trials of a sweep by their `figure`; returns what is wrong with them, or None."""
    files = sorted((folder / TRIALS).glob("*.json"), key=lambda file: int(file.stem))
    trials = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    known = {each["name"]: each["figure"] for each in trials if each["figure"] is not None}
    rows = [
        (each["name"], [each["state"], "-" if each["figure"] is None else count(each["figure"], 4)]) for each in trials
    ]
    show_facts(f"Sweep {folder}", ("", figure), rows, ())
    if known and (higher := higher_is_better(figure)) is not None:
        best = (max if higher else min)(known, key=known.get)
        say(f"Best {figure}: {count(known[best], 4)}, {folder / best}")
    say(f"What each setting did: python -m minillm.compare {folder}")
    wrong = [each for each in trials if each["state"] != DONE]
    lines = [f"  - {each['name']}: {each['state']}. " + each["text"].replace("\n", "\n  ") for each in wrong]
    head = f"{len(wrong)} of {len(trials)} trials did not finish; the same command goes on:"
    return "\n".join([head, *lines]) if wrong else None
