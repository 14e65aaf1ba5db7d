"""Commands one after the other, each with a record of what it read and made: what is there is skipped, what was cut off
goes on, two chains do not meet."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich import get_console

from minillm.errors import ConfigError, Interrupted, MinillmError
from minillm.recipe.made import differing
from minillm.system.child import ROOT, forwarded, importable
from minillm.system.files import fingerprint, write_whole
from minillm.system.lock import locked
from minillm.terminal.console import say
from minillm.terminal.numbers import duration


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


def run_chain(run_dir: Path, stages: list[Stage]) -> dict[str, dict]:
    """Make what is missing; the records of all stages, by name.

    Raises:
        ConfigError: results are there that were made otherwise; what can be known of that is said before the first
            stage begins. Interrupted: by a signal. MinillmError: a stage failed.
    """
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    file = run_dir / "chain.json"
    contents = functools.cache(lambda path: fingerprint(Path(path).expanduser()))  # as they are when the chain begins
    results = {stage.name: stage.result for stage in stages}
    with _alone(run_dir) as lock:
        records = json.loads(file.read_text()) if file.exists() else {}

        def inputs_of(stage: Stage) -> dict[str, str | None]:
            """None for a stage that is not made yet."""
            return {each: made_now(each) if each in results else contents(each) for each in stage.reads}

        def made_now(name: str) -> str | None:
            there = name in records and (run_dir / name / results[name]).exists()
            return records[name]["result"] if there else None

        _refuse_others(stages, run_dir, records, inputs_of)
        for number, stage in enumerate(stages, start=1):
            title, folder = f"[{number}/{len(stages)}] {stage.name}", run_dir / stage.name
            _refuse_others([stage], run_dir, records, inputs_of)
            inputs, made, seconds = inputs_of(stage), records.get(stage.name), None
            result, grown = folder / stage.result, made is not None and _grown(stage, made, inputs)
            if made and made["result"] and result.exists() and not grown:
                say(f"{title}: there since {made['finished']}")
                continue
            # A file is a command's last act; a kill may have come before it was recorded.
            if not made or grown or not result.is_file():
                # Before it begins: what is cut off may only go on with the same command and inputs.
                records[stage.name] = {"command": list(stage.command), "inputs": inputs, "result": None}
                if grown:
                    result.unlink(missing_ok=True)  # of fewer models; its command keeps what it was made of
                write_whole(file, json.dumps(records, indent=2) + "\n")
                seconds = round(_call(stage, run_dir, title, lock), 1)
            records[stage.name] |= {
                "result": fingerprint(result),
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


def _refuse_others(stages: list[Stage], run_dir: Path, records: dict, inputs_of: Callable[[Stage], dict]) -> None:
    """Raises ConfigError with all that is there and was made otherwise, as far as the inputs are known."""
    problems = []
    for stage in stages:
        made, folder = records.get(stage.name), run_dir / stage.name
        if not made or not folder.exists():
            continue
        was = made["inputs"]
        found = [
            f"{name} is another" for name, now in inputs_of(stage).items() if now and was.get(name) not in (None, now)
        ]
        if found := found + _made_otherwise(stage, made, folder):
            problems.append(f"{folder}: {'; '.join(found)}. Delete it to make it again, or choose another run.name")
    if problems:
        raise ConfigError(problems)


def _made_otherwise(stage: Stage, made: dict, folder: Path) -> list[str]:
    if stage.settings is not None:
        finished = bool(made["result"]) and (folder / stage.result).exists()
        try:
            return differing(stage.config, stage.settings, folder, finished=finished)
        except ValueError as error:
            return [str(error)]
    before, now = (
        ", ".join(word for word in command if word not in other)
        for command, other in ((made["command"], stage.command), (stage.command, made["command"]))
    )
    return [f"it was made with {before or 'less'}, now it is {now or 'less'}"] if before or now else []


def _grown(stage: Stage, made: dict, inputs: dict) -> bool:
    """Is it an evaluation of other models or files than before? It adds what is new to what it has measured."""
    if stage.config != "evaluate":
        return False
    return made["command"] != list(stage.command) or made["inputs"].keys() != inputs.keys()


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
        how = f"was killed by {_signal(-code)}" if code < 0 else "failed"
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise MinillmError(f"{title} {how}; the same command goes on from here. The end of {log}:\n{last}")
    return time.time() - began


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"
