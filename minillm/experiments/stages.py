"""Commands that depend on one another: what is made is skipped, what was cut off goes on, what was made otherwise is
refused. chain.json records what each was made with."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import get_console

from minillm.common.changes import FIGURES, LONGER, changes, flat, within
from minillm.common.child import ROOT, Children
from minillm.common.console import say
from minillm.common.errors import ConfigError, Interrupted, MinillmError, check
from minillm.common.files import fingerprint, locked, write_whole
from minillm.common.numbers import duration
from minillm.common.read import read_json

# What another value does not change; what an evaluation measures may grow.
_FREE = {"generate": ("run", "device", "devices")}
_FREE["evaluate"] = (*_FREE["generate"], "report", "wandb", "models", "data.files", "suite")
_EXPORTED = (*FIGURES, "callbacks.record.export")  # nothing to a run that goes on, but another student
_LAST_LINES = 15  # of the log of a stage that failed


@dataclass(frozen=True)
class Stage:
    """`command` follows the interpreter; `reads` are stages and files that it depends on; it makes `result`, a file
    or a directory below the stage's own. `settings`: the config that the command composes."""

    name: str
    command: tuple[str, ...]
    reads: tuple[str, ...]
    result: str
    settings: dict = field(default_factory=dict)

    @property
    def config(self) -> str:
        """Which config it composes: train, evaluate or generate."""
        return {"train.py": "train", "evaluate.py": "evaluate"}.get(self.command[0], "generate")


def run_chain(run_dir: Path, stages: Sequence[Stage], jobs: int = 1) -> dict[str, dict]:
    """Make what is missing, `jobs` stages at a time; the records of all, by name. Each of `stages` may read earlier
    ones.

    Raises:
        ConfigError: results are there that were made otherwise; what can be known of that is told before the first
            stage begins. Interrupted: by a signal. MinillmError: a stage failed, or another chain is at work there.
    """
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)

    def busy(file: Path) -> None:
        raise MinillmError(
            f"{run_dir}: another chain, or a stage that it began, is at work there; wait until it is done or end it "
            f"(`fuser {file}` names the process), then give the same command again"
        )

    with locked(run_dir / "lock", busy) as lock:
        chain = _Chain(run_dir, stages, lock)
        chain.refuse_others(stages)
        chain.make(jobs)
    return chain.records


class _Chain:
    """The stages of a directory, by name, and their records in chain.json. A stage that outlives its chain has `lock`
    and keeps the next chain out."""

    def __init__(self, run_dir: Path, stages: Sequence[Stage], lock: int):
        self.run_dir, self.stages, self.lock = run_dir, {stage.name: stage for stage in stages}, lock
        self.records, self.children = read_records(run_dir), Children()
        self._content = functools.cache(lambda path: fingerprint(Path(path).expanduser()))  # when the chain begins

    def made(self, name: str) -> str | None:
        """The fingerprint of a stage's result, None while it is not made."""
        there = (self.run_dir / name / self.stages[name].result).exists()
        return self.records.get(name, {}).get("result") if there else None

    def inputs(self, stage: Stage) -> dict[str, str | None]:
        return {each: self.made(each) if each in self.stages else self._content(each) for each in stage.reads}

    def record(self, name: str, **values) -> None:
        self.records[name] = self.records.get(name, {}) | values
        write_whole(self.run_dir / "chain.json", json.dumps(self.records, indent=2) + "\n")

    def title(self, name: str) -> str:
        return f"[{list(self.stages).index(name) + 1}/{len(self.stages)}] {name}"

    def log(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"

    def refuse_others(self, stages: Sequence[Stage]) -> None:
        """Raises ConfigError with all that is there and was made otherwise, as far as the inputs are known."""
        problems = []
        for stage in stages:
            before, folder = self.records.get(stage.name), self.run_dir / stage.name
            if not before or not folder.exists():
                continue
            inputs = self.inputs(stage).items()
            found = [f"{name} has changed" for name, now in inputs if now and before["inputs"].get(name, now) != now]
            for each in changes(flat(before["settings"]), flat(stage.settings)):
                another_student = each.effect in (None, LONGER) or within(each.key, _EXPORTED)
                if another_student if stage.config == "train" else not within(each.key, _FREE[stage.config]):
                    found.append(str(each))
            if found:
                problems.append(f"{folder}: {'; '.join(found)}. Delete it to make it again, or choose another run.name")
        if problems:
            raise ConfigError(problems)

    def make(self, jobs: int) -> None:
        waiting, running = list(self.stages.values()), self.children.running
        shares: dict[str, int] = {}  # which part of the machine each has
        with self.children:
            while waiting or running:
                # The first that reads nothing of those at work or waiting before it.
                free = (
                    stage for n, stage in enumerate(waiting)
                    if {*running, *(each.name for each in waiting[:n])}.isdisjoint(stage.reads)
                )  # fmt: skip
                stage = next(free, None) if len(running) < jobs else None
                if stage is None:
                    self._end()
                    continue
                waiting.remove(stage)
                shares[stage.name] = min({*range(jobs)} - {shares[name] for name in running})
                alone = stage.name == list(self.stages)[-1]
                self._begin(stage, _share(shares[stage.name], 1 if alone else jobs))

    def _begin(self, stage: Stage, share: dict[str, str]) -> None:
        """Start it, if it is not made yet."""
        self.refuse_others([stage])
        if self.children.signal:
            raise self._interrupted(self.children.running)
        inputs, before, settings = self.inputs(stage), self.records.get(stage.name), stage.settings
        grown = stage.config == "evaluate" and before and (before["settings"], before["inputs"]) != (settings, inputs)
        if self.made(stage.name) and not grown:
            say(f"{self.title(stage.name)}: there since {before['finished']}")
            return
        first, *words = stage.command
        self.record(stage.name, command=[first, *words], settings=settings, inputs=inputs, result=None)
        if stage.config == "train" and (self.run_dir / stage.name / "config.yaml").exists():
            words.append("resume=auto")
        command, options = [str(ROOT / first) if first.endswith(".py") else first, *words], dict(pass_fds=(self.lock,))
        self.children.start(stage.name, command, self.log(stage.name), env=os.environ | share, **options)

    def _end(self) -> None:
        """Wait for a stage and record what it made. Raises Interrupted, or MinillmError: it failed."""
        running = self.children.running
        with get_console().status("  ".join(f"{self.title(name)}  ({self.log(name)})" for name in running)):
            name, code = self.children.next_ended()
        title, log = self.title(name), self.log(name)
        if self.children.signal or code == Interrupted.status:
            raise self._interrupted([name, *running])
        if code:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else "failed"
            last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])
            if running:
                say(f"{title} {how}\nWaiting for stage {' and '.join(running)} to save")
            raise MinillmError(f"{title} {how}; the same command goes on from here.\nThe end of {log}:\n{last}")
        result = fingerprint(self.run_dir / name / self.stages[name].result)
        seconds = round(time.monotonic() - self.children.began[name], 1)
        self.record(name, result=result, seconds=seconds, finished=time.strftime("%Y-%m-%d %H:%M:%S"))
        say(f"{title}: {duration(seconds)}")

    def _interrupted(self, names: Sequence[str]) -> Interrupted:
        by, at_work = self.children.signal or "a signal", " and ".join(map(self.title, names))
        return Interrupted(f"{by} in {at_work}" if at_work else by, then="the same command goes on")


def read_records(run_dir: Path) -> dict[str, dict]:
    """What chain.json says of each stage. Raises ConfigError: damaged, or of an older version."""
    file, remedy = run_dir / "chain.json", "delete it, and what is finished is recorded anew"
    records = read_json(file, remedy) or {}
    fields = {"command": list, "settings": dict, "inputs": dict, "result": str | None}
    for name, each in records.items():
        whole = isinstance(each, dict) and all(isinstance(each.get(key), kind) for key, kind in fields.items())
        check((whole, f"{file}: damaged, or of an older version ({name}); {remedy}"))
    return records


def begun_on(run_dir: Path) -> str | None:
    """The date in the settings of the chain there: all its prompts have the same."""
    dates = (each["settings"].get("data", {}).get("date") for each in read_records(run_dir).values())
    return next(filter(None, dates), None)


def _share(number: int, jobs: int) -> dict[str, str]:
    """The environment of one of `jobs` commands at a time: its part of the cores and, if each can have one, of the
    GPUs."""
    if jobs == 1:
        return {}
    import torch

    share, gpus = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}, torch.cuda.device_count()
    if gpus >= jobs:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        share["CUDA_VISIBLE_DEVICES"] = ",".join(seen.split(",")[number::jobs])
    return share
