"""The commands of a chain that are at work: several at a time, which share out this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from rich import get_console

from minillm.common.child import forwarded, importable
from minillm.common.console import say
from minillm.common.errors import Interrupted, MinillmError, first_line

_LOOK_EVERY = 0.05  # seconds


@dataclass(frozen=True)
class Stage:
    """`command` follows the interpreter; `reads` are stages and files that it depends on; it makes `result`, a file
    or a directory below the stage's own. `settings`: the config that the command composes, where it is one of ours."""

    name: str
    command: tuple[str, ...]
    reads: tuple[str, ...]
    result: str
    settings: dict | None = None

    @property
    def config(self) -> str:
        """Which config it composes: train, evaluate or generate."""
        return {"train.py": "train", "evaluate.py": "evaluate"}.get(self.command[0], "generate")


@dataclass(frozen=True)
class Child:
    """A stage's command at work. `share`: which part of the machine it has."""

    name: str
    title: str
    log: Path
    process: subprocess.Popen
    share: int
    began: float


class Children:
    """At most `jobs` commands at a time; each has its share of the cores and, where there are enough, of the GPUs.

    Within `forwarding`, signals go on to all of them; an error in it asks them to save and waits for them.
    """

    def __init__(self, lock: TextIO, jobs: int):
        self.lock, self.jobs = lock, jobs
        self.running: list[Child] = []
        self.received: list[int] = []
        self._note()

    @property
    def full(self) -> bool:
        return len(self.running) == self.jobs

    def begin(self, stage: Stage, title: str, command: list[str], log: Path, *, last: bool) -> None:
        """`command` follows the interpreter; what it says goes to `log`. last: nothing will be made beside it, so that
        it has the whole machine. Raises Interrupted: by a signal before."""
        if self.received:  # between two stages
            raise self._interrupted(self._signals())
        importable()
        share = min(set(range(self.jobs)) - {each.share for each in self.running})
        jobs = 1 if last else self.jobs
        own = dict(stderr=subprocess.STDOUT, pass_fds=(self.lock.fileno(),), env=os.environ | gpus(share, jobs))
        with open(log, "a", encoding="utf-8") as stream:
            process = subprocess.Popen([sys.executable, *command], stdout=stream, **own)
        self.running.append(Child(stage.name, title, log, process, share, time.time()))
        if self.received:  # while it began
            process.terminate()
        keep_to(process.pid, cores(share, jobs))
        self._note()

    def next_ended(self) -> tuple[str, float]:
        """Wait for one; its name and seconds.

        Raises:
            Interrupted: by a signal. MinillmError: it failed.
        """
        with get_console().status("  ".join(f"{each.title}  ({each.log})" for each in self.running)):
            while not (ended := [each for each in self.running if each.process.poll() is not None]):
                time.sleep(_LOOK_EVERY)
        child = ended[0]
        if self.received or child.process.returncode == Interrupted.status:
            raise self._interrupted(self._signals())
        self.running.remove(child)
        self._note()
        if code := child.process.returncode:
            how = f"was killed by {_signal(-code)}" if code < 0 else "failed"
            last = "\n".join(child.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise MinillmError(
                f"{child.title} {how}; the same command goes on from here.\nThe end of {child.log}:\n{last}"
            )
        return child.name, max(0.0, time.time() - child.began)

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Raises Interrupted: Ctrl-C."""
        try:
            with forwarded(self._processes, self.received, self._names):
                try:
                    yield
                except Exception as error:
                    self._end(error)
                    raise
        except KeyboardInterrupt:
            raise self._interrupted("Ctrl-C") from None

    def _end(self, error: Exception) -> None:
        """Wait until all have saved."""
        left = [each for each in self.running if each.process.poll() is None]
        if left and not self.received:  # else they know
            say(f"{first_line(error)}\nWaiting for {self._names()} to save")  # all of it comes at the end
            for each in left:
                each.process.terminate()
        for each in left:
            each.process.wait()

    def _processes(self) -> list[subprocess.Popen]:
        return [each.process for each in self.running]

    def _names(self) -> str:
        return " and ".join(f"stage {each.name}" for each in self.running)

    def _signals(self) -> str:
        return signal.Signals(self.received[0]).name if self.received else "a signal"

    def _interrupted(self, why: str) -> Interrupted:
        at_work = " and ".join(each.title for each in self.running)
        return Interrupted(f"{why} in {at_work}" if at_work else why, then="the same command goes on")

    def _note(self) -> None:
        """Say in the lock who is at work: a stage that outlives its chain keeps the next chain out."""
        host = socket.gethostname()
        stages = " and ".join(f"stage {each.name} (process {each.process.pid} on {host})" for each in self.running)
        chain = f"{stages} of a chain ({os.getpid()})" if stages else f"a chain (process {os.getpid()} on {host})"
        self.lock.truncate(0)
        self.lock.write(chain + "\n")
        self.lock.flush()


def gpus(share: int, jobs: int) -> dict[str, str]:
    """The environment in which a process sees its share of the GPUs, if there is at least one a share."""
    there = torch.cuda.device_count()
    if jobs == 1 or there < jobs:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(there)))
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen.split(",")[share::jobs])}


def cores(share: int, jobs: int) -> list[int]:
    """Numbers of the cores of a share; none where there are fewer cores than shares, or they cannot be told (macOS)."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return there[len(there) * share // jobs : len(there) * (share + 1) // jobs]


def keep_to(pid: int, numbers: list[int]) -> None:
    """Libraries make as many threads as they find cores, so a share needs no other word."""
    if numbers:
        with suppress(OSError):  # not allowed, or the process has ended
            os.sched_setaffinity(pid, numbers)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"
