"""Commands one after the other, each with a record of what it read and made: what is there is skipped, what was cut off
goes on, two chains do not meet."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich import get_console

from minillm.errors import ConfigError, Interrupted, MinillmError
from minillm.system.child import ROOT, forwarded, importable
from minillm.system.files import fingerprint, write_whole
from minillm.system.lock import locked
from minillm.terminal.console import say
from minillm.terminal.numbers import duration


@dataclass(frozen=True)
class Stage:
    """`command` follows the interpreter; `reads` are stages and files that it depends on; it makes `result`, a file
    or a directory below the stage's own."""

    name: str
    command: tuple[str, ...]
    reads: tuple[str, ...]
    result: str


def run_chain(run_dir: Path, stages: list[Stage]) -> dict[str, dict]:
    """Make what is missing; the records of all stages, by name.

    Raises:
        ConfigError: a result is there that was made otherwise. Interrupted: by a signal. MinillmError: a stage failed.
    """
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    file = run_dir / "chain.json"
    with _alone(run_dir) as lock:
        records = json.loads(file.read_text()) if file.exists() else {}
        for number, stage in enumerate(stages, start=1):
            title, folder = f"[{number}/{len(stages)}] {stage.name}", run_dir / stage.name
            inputs = {
                each: records[each]["result"] if each in records else fingerprint(Path(each)) for each in stage.reads
            }
            made, seconds = records.get(stage.name), None
            if made and folder.exists():
                _refuse_another(stage, made, inputs, folder)
                if made["result"] and (folder / stage.result).exists():
                    say(f"{title}: there since {made['finished']}")
                    continue
            # A file is a command's last act; a kill may have come before it was recorded.
            if not (made and (folder / stage.result).is_file()):
                # Before it begins: what is cut off may only go on with the same command and inputs.
                records[stage.name] = {"command": list(stage.command), "inputs": inputs, "result": None}
                write_whole(file, json.dumps(records, indent=2) + "\n")
                seconds = round(_call(stage, run_dir, title, lock), 1)
            records[stage.name] |= {
                "result": fingerprint(folder / stage.result),
                "seconds": seconds,
                "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            write_whole(file, json.dumps(records, indent=2) + "\n")
            say(f"{title}: {'was there, is recorded now' if seconds is None else duration(seconds)}")
    return records


@contextmanager
def _alone(run_dir: Path) -> Iterator[TextIO]:
    """A stage that outlives its chain keeps the next chain out."""

    def busy(note: str) -> None:
        raise MinillmError(
            f"{run_dir}: {note} is at work there; wait until it is done or end it (kill with its number), then give "
            "the same command again"
        )

    with locked(run_dir / "lock", busy) as lock:
        _note(lock, f"a chain (process {os.getpid()} on {socket.gethostname()})")
        yield lock


def _note(lock: TextIO, text: str) -> None:
    lock.truncate(0)
    lock.write(text + "\n")
    lock.flush()


def _refuse_another(stage: Stage, made: dict, inputs: dict[str, str], folder: Path) -> None:
    differing = [f"{name} is another" for name in inputs if made["inputs"].get(name) != inputs[name]]
    before, now = (
        ", ".join(word for word in command if word not in other)
        for command, other in ((made["command"], stage.command), (stage.command, made["command"]))
    )
    if before or now:
        differing.append(f"it was made with {before or 'less'}, now it is {now or 'less'}")
    if differing:
        raise ConfigError(f"{folder}: {'; '.join(differing)}. Delete it to make it again, or choose another run.name")


def _call(stage: Stage, run_dir: Path, title: str, lock: TextIO) -> float:
    command = [sys.executable, *stage.command]
    if stage.command[0].endswith(".py"):
        command[1] = str(ROOT / stage.command[0])
    if stage.command[0] == "train.py" and (run_dir / stage.name / "config.yaml").exists():
        command.append("resume=auto")  # it was cut off
    log = run_dir / "logs" / f"{stage.name}.log"
    began = time.time()
    importable()
    own = dict(stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),))
    with open(log, "a", encoding="utf-8") as stream, get_console().status(f"{title}  ({log})"):
        child = subprocess.Popen(command, stdout=stream, **own)
        _note(lock, f"stage {stage.name} (process {child.pid} on {socket.gethostname()}) of a chain ({os.getpid()})")
        received: list[int] = []
        try:
            with forwarded(child, received, f"stage {stage.name}"):
                code = child.wait()
        except KeyboardInterrupt:
            raise Interrupted(f"Ctrl-C in {title}", then="the same command goes on") from None
    if received or code == Interrupted.status:
        why = signal.Signals(received[0]).name if received else "a signal"
        raise Interrupted(f"{why} in {title}", then="the same command goes on")
    if code:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise MinillmError(f"{title} failed; the same command goes on from here. The end of {log}:\n{last}")
    return time.time() - began
