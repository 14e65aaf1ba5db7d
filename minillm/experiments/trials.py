"""One trial of a sweep: a run like any other, made by a train.py of its own in its own directory.

In a process of its own a trial that is killed, or breaks its CUDA context, takes nothing with it, whichever launcher
began it, and leaves no memory behind. A finished trial is skipped; one that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from minillm.common import cli
from minillm.common.changes import LONGER, changes, flat
from minillm.common.child import ROOT, Children
from minillm.common.console import say
from minillm.common.errors import Interrupted
from minillm.common.files import write_whole
from minillm.common.lock import locked
from minillm.common.numbers import count, duration, is_finite
from minillm.common.overrides import override
from minillm.common.read import ERROR, LOG, TRIALS, higher_is_better, read_figures, read_settings
from minillm.common.stored import resolved

DONE = "finished"
_LONGEST_NAME, _LONGEST_TAG = 100, 64  # W&B refuses longer tags


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `state` is finished, failed, killed or refused; `text` says why. `seconds` is
    None where nothing was begun."""

    number: int
    name: str
    state: str
    text: str = ""
    figure: float | None = None
    seconds: float | None = None


def trial_name(overrides: str, number: object) -> str:
    """The name of a trial's directory: what was swept, such as `sampler.alpha-0.1+seed-2`, in characters that are safe
    in a path and as a value of Hydra. Where nothing is swept the name is the trial's number."""
    name = re.sub(r"[^\w.+-]+", "_", overrides)
    if name != overrides or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"
    return name if overrides else str(number)


OmegaConf.register_new_resolver("trial_name", trial_name, replace=True)  # conf/train.yaml: hydra.sweep.subdir


def better(figure: str) -> str:
    """The direction of a sweeper; minimize for a figure of which nothing is known."""
    return "maximize" if higher_is_better(figure) else "minimize"


OmegaConf.register_new_resolver("better", better, replace=True)  # conf/sweep/optuna.yaml: hydra.sweeper.direction


def run_trial(cfg: DictConfig) -> float | None:
    """Make the trial that Hydra composed, or find it made; its outcome goes to <sweep>/.trials/<number>.json. A signal
    to the sweep ends its trial, then, if both are one process, the sweep (status 75).

    Returns:
        `optimized_metric` of its metrics.json; None, which a sweeper counts as failed, where there is no finite one.
    """
    job, plain = HydraConfig.get(), resolved(cfg)
    run_dir, number, children = Path(job.runtime.output_dir), int(job.job.num), Children()

    def busy(note: str) -> None:  # a run that outlived its sweep
        say(f"{run_dir}: another process is at work there; waiting for it")

    with locked(run_dir / "lock", busy) as lock:
        began = time.monotonic()
        found = _found(plain, run_dir)
        try:
            state, text = found or _make(plain, run_dir, number, children, lock.fileno())
        except OSError as error:  # of this trial's files; the others go on
            state, text = "failed", f"{error.filename or run_dir}: {error.strerror or error}"
        value = read_figures(run_dir).get(plain["optimized_metric"]) if state == DONE else None
    figure = float(value) if is_finite(value) else None
    if state == DONE and figure is None:
        text = f"no finite {plain['optimized_metric']} in metrics.json"
    outcome = Outcome(number, run_dir.name, state, text, figure, None if found else time.monotonic() - began)
    trials = Path(job.sweep.dir) / TRIALS
    trials.mkdir(parents=True, exist_ok=True)
    write_whole(trials / f"{number}.json", json.dumps(asdict(outcome), indent=2) + "\n")
    how = " before; skipped" if found else f" after {duration(outcome.seconds)}"
    shown = "" if figure is None else f", {plain['optimized_metric']} {count(figure, 4)}"
    say(f"Trial {number}, {outcome.name}: {state}{how}{shown}" + (text and f". {text}"))
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


def _make(plain: dict, run_dir: Path, number: int, children: Children, lock: int) -> tuple[str, str]:
    """State and text of a trial that is made now."""
    command, log = command_of(plain, run_dir), run_dir / LOG
    (run_dir / ERROR).unlink(missing_ok=True)
    say(f"Trial {number}, {run_dir.name}: begins; its output is in {log}")
    start = log.stat().st_size if log.exists() else 0
    with children:
        children.start("the trial", command, log, pass_fds=(lock,))
        _, code = children.next_ended()
    figures = read_figures(run_dir) if code == 0 else None
    if figures is not None:
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
