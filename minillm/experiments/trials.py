"""One trial of a sweep: a run like any other, made by a train.py of its own in its own directory.

In a process of its own a trial that fails or is killed takes nothing with it, whichever launcher began it, and leaves
no memory behind. A finished trial is skipped, one that was cut off goes on with its last checkpoint.
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

from minillm.common.changes import LONGER, changes, flat
from minillm.common.child import ROOT, forwarded
from minillm.common.console import say
from minillm.common.errors import Interrupted
from minillm.common.files import write_whole
from minillm.common.lock import locked
from minillm.common.numbers import count, duration, is_finite
from minillm.common.overrides import override
from minillm.common.read import ERROR, LOG, STOPPED, TRIALS, read_figures, read_settings
from minillm.common.secret import secret_problems
from minillm.common.stored import resolved

DONE = ("finished", "stopped early")
_LONGEST_NAME, _LONGEST_TAG = 100, 64  # W&B refuses longer tags


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `state` is finished, stopped early, failed, killed or refused; `text` says why."""

    number: int
    name: str
    state: str
    text: str = ""
    figure: float | None = None
    seconds: float = 0.0
    skipped: bool = False  # it was there already


def trial_name(overrides: str, number: object) -> str:
    """The name of a trial's directory: what was swept, such as `sampler.alpha-0.1+seed-2`, in characters that are safe
    in a path and as a value of Hydra. The same values give the same name, whatever else is swept. Where nothing is
    swept the name is the trial's number."""
    name = re.sub(r"[^\w.+-]+", "_", overrides)
    if name != overrides or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"
    return name if overrides else str(number)


OmegaConf.register_new_resolver("trial_name", trial_name, replace=True)  # conf/train.yaml: hydra.sweep.subdir


def in_sweep() -> bool:
    """Is this a job of a sweep (-m)?"""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def run_trial(cfg: DictConfig) -> float | None:
    """Make the trial that Hydra composed, or find it made; its outcome goes to <sweep>/.trials/<number>.json.

    Returns:
        `optimized_metric` of its metrics.json; None, which a sweeper counts as failed, where there is no finite one.

    Raises:
        KeyboardInterrupt: on SIGTERM, SIGUSR1 and SIGUSR2 where the sweep runs in this process, after the trial ended.
    """
    job = HydraConfig.get()
    run_dir, sweep_dir = Path(job.runtime.output_dir), Path(job.sweep.dir)
    plain = resolved(cfg)
    number, name = int(job.job.num), run_dir.name
    received: list[int] = []

    def busy(note: str) -> None:  # a run that outlived its sweep
        say(f"{run_dir}: another process is at work there; waiting for it")

    with locked(run_dir / "lock", busy) as lock:
        outcome = _found(plain, run_dir, number)
        if outcome is None:
            outcome = _make(plain, run_dir, number, lock.fileno(), received)
    if outcome.state in DONE and outcome.figure is None:
        outcome = Outcome(**asdict(outcome) | {"text": f"no finite {plain['optimized_metric']} in metrics.json"})
    (sweep_dir / TRIALS).mkdir(parents=True, exist_ok=True)
    write_whole(sweep_dir / TRIALS / f"{number}.json", json.dumps(asdict(outcome), indent=2) + "\n")
    figure = "" if outcome.figure is None else f", {plain['optimized_metric']} {count(outcome.figure, 4)}"
    how = " before; skipped" if outcome.skipped else f" after {duration(outcome.seconds)}"
    say(f"Trial {number}, {name}: {outcome.state}{how}{figure}" + (f". {outcome.text}" if outcome.text else ""))
    if received and job.runtime.choices["hydra/launcher"] == "basic":
        raise KeyboardInterrupt
    return outcome.figure


def _found(plain: dict, run_dir: Path, number: int) -> Outcome | None:
    """What an earlier sweep left: done, or not to be touched; None where there is work."""
    try:
        before, figures = read_settings(run_dir), read_figures(run_dir)
    except ValueError as error:
        return Outcome(number, run_dir.name, "refused", str(error))
    found = [] if before is None else changes(before, flat(plain))
    if other := [str(each) for each in found if not each.effect]:
        text = f"{run_dir} was made with other settings: {'; '.join(other)}. Delete it or choose another run.name"
        return Outcome(number, run_dir.name, "refused", text)
    if any(each.effect == LONGER for each in found):
        return None
    return None if figures is None else _done(plain, run_dir, number, figures, skipped=True)


def _done(plain: dict, run_dir: Path, number: int, figures: dict, **more) -> Outcome:
    value = figures.get(plain["optimized_metric"])
    finite = is_finite(value)
    state = "stopped early" if STOPPED in figures else "finished"
    return Outcome(number, run_dir.name, state, figure=float(value) if finite else None, **more)


def _make(plain: dict, run_dir: Path, number: int, lock: int, received: list[int]) -> Outcome:
    command = command_of(plain, run_dir)
    (run_dir / ERROR).unlink(missing_ok=True)
    say(f"Trial {number}, {run_dir.name}: begins; its output is in {run_dir / LOG}")
    began = time.time()
    with open(run_dir / LOG, "ab") as log:
        start = log.tell()
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,))
        with forwarded(lambda: [child], received, lambda: "the trial"):
            code = child.wait()
    seconds, name = time.time() - began, run_dir.name
    figures = None
    if code == 0:
        figures = read_figures(run_dir)
    if figures is not None:
        return _done(plain, run_dir, number, figures, seconds=seconds)
    if code <= 0 or code > 128 or code == Interrupted.status:
        by_signal = f"by signal {-code if code < 0 else code - 128}"
        ended = by_signal if code < 0 or code > 128 else "before its end"
        text = f"It was ended {ended}; the same sweep goes on with it"
        return Outcome(number, name, "killed", text, seconds=seconds)
    with open(run_dir / LOG, "rb") as log:
        log.seek(start)
        text = error_in(log.read().decode(errors="replace"))
    shown = subprocess.list2cmdline(command)
    if secret_problems({}, shown):
        shown = "not written here, because it holds a secret"
    write_whole(run_dir / ERROR, f"{text}\n\nThe command: {shown}\n")
    return Outcome(number, name, "failed", text, seconds=seconds)


def command_of(plain: dict, run_dir: Path) -> list[str]:
    """The trial as a single run: its overrides, its name and directory, and its place in W&B."""
    job = HydraConfig.get()
    sources = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    overrides = [str(each) for each in job.overrides.task]
    own = [f"run.name={plain['run']['name']}/{run_dir.name}", override("hydra.run.dir", str(run_dir)), "resume=auto"]
    logger = plain["logger"]
    if "tags" in logger and "group" in logger:
        hidden = ("run.name=", "resume=", "logger.")
        found = [tag(each) for each in overrides if not each.lstrip("+").startswith(hidden)]
        tags = dict.fromkeys([*(logger["tags"] or ()), *found])
        own.append(override("logger.group", logger["group"] or plain["run"]["name"]))
        own.append(override("logger.tags", list(tags)))
    paths = [word for path in sources for word in ("--config-dir", path)]
    return [sys.executable, str(ROOT / "train.py"), *paths, *overrides, *own]


def tag(override: str) -> str:
    """An override as a W&B tag: at most 64 characters, still another one for another override."""
    text = re.sub(r"[\\$'\"\n]", "_", override)
    if len(text) <= _LONGEST_TAG:
        return text
    return f"{text[: _LONGEST_TAG - 9]}-{hashlib.sha256(override.encode()).hexdigest()[:8]}"


def error_in(output: str) -> str:
    """The end of what a failed run printed: its own message, or the last line of a traceback; never empty."""
    lines = output.strip().splitlines()
    found = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    if found:
        return "\n".join(lines[found[-1] :])[:2000]
    return lines[-1][:2000] if lines else "It said nothing"
