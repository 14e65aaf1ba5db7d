"""Commands that depend on one another, each with a record of what it read and made: what is there is skipped, what was
cut off goes on, two chains do not meet."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from minillm.common.child import ROOT
from minillm.common.console import say
from minillm.common.errors import ConfigError, MinillmError, check
from minillm.common.files import fingerprint, write_whole
from minillm.common.lock import locked
from minillm.common.numbers import duration
from minillm.common.read import read_json
from minillm.experiments.children import Children, Stage
from minillm.experiments.made import differing


def run_chain(run_dir: Path, stages: list[Stage], jobs: int = 1) -> dict[str, dict]:
    """Make what is missing, `jobs` stages at a time once all that they read is made; the records of all, by name.

    Raises:
        ConfigError: results are there that were made otherwise; what can be known of that is said before the first
            stage begins. Interrupted: by a signal. MinillmError: a stage failed.
    """
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    file = run_dir / "chain.json"
    contents = functools.cache(lambda path: fingerprint(Path(path).expanduser()))  # as they are when the chain begins
    of = {stage.name: stage for stage in stages}
    titles = {stage.name: f"[{number}/{len(stages)}] {stage.name}" for number, stage in enumerate(stages, start=1)}
    with _alone(run_dir) as lock:
        records = read_records_of(file)
        children = Children(lock, jobs)

        def inputs_of(stage: Stage) -> dict[str, str | None]:
            """None for a stage that is not made yet."""
            return {each: made_now(each) if each in of else contents(each) for each in stage.reads}

        def made_now(name: str) -> str | None:
            there = name in records and (run_dir / name / of[name].result).exists()
            return records[name]["result"] if there else None

        def record(name: str, **values) -> None:
            records[name] = records.get(name, {}) | values
            write_whole(file, json.dumps(records, indent=2) + "\n")

        def made(name: str, seconds: float | None) -> None:
            result = fingerprint(run_dir / name / of[name].result)
            seconds = None if seconds is None else round(seconds, 1)
            record(name, result=result, seconds=seconds, finished=time.strftime("%Y-%m-%d %H:%M:%S"))
            say(f"{titles[name]}: {'was there, is recorded now' if seconds is None else duration(seconds)}")

        def begin(stage: Stage) -> None:
            _refuse_others([stage], run_dir, records, inputs_of)
            inputs, before, folder = inputs_of(stage), records.get(stage.name), run_dir / stage.name
            result, grown = folder / stage.result, before is not None and _grown(stage, before, inputs)
            if before and before["result"] and result.exists() and not grown:
                return say(f"{titles[stage.name]}: there since {before['finished']}")
            if before and not grown and result.is_file():
                # A file is a command's last act; a kill may have come before it was recorded.
                return made(stage.name, None)
            # Before it begins: what is cut off may only go on with the same command and inputs.
            records[stage.name] = {}
            record(stage.name, command=list(stage.command), inputs=inputs, result=None)
            if grown:
                result.unlink(missing_ok=True)  # of fewer models; its command keeps what it was made of
            log = run_dir / "logs" / f"{stage.name}.log"
            children.begin(
                stage, titles[stage.name], _command(stage, folder), log, last=not waiting and not children.running
            )

        _refuse_others(stages, run_dir, records, inputs_of)
        waiting = list(stages)
        with children.forwarding():
            while waiting or children.running:
                left = len(waiting)
                for stage in list(waiting):
                    busy = {each.name for each in (*waiting, *children.running)}
                    if not children.full and not busy.intersection(stage.reads):
                        waiting.remove(stage)
                        begin(stage)
                if children.running:
                    made(*children.next_ended())
                elif len(waiting) == left:
                    names = ", ".join(stage.name for stage in waiting)
                    raise ConfigError(f"{names}: wait for one another; is a file or directory named like a stage?")
    return records


def read_records_of(file: Path) -> dict[str, dict]:
    """What chain.json says of each stage. Raises ConfigError: damaged."""
    remedy = "delete it, and what is finished is recorded anew"
    records = read_json(file, remedy) or {}
    fields = {"command": list, "inputs": dict, "result": str | None}
    for name, each in records.items():
        whole = isinstance(each, dict) and all(isinstance(each.get(key), kind) for key, kind in fields.items())
        check((whole and all(isinstance(word, str) for word in each["command"]), f"{file}: damaged ({name}); {remedy}"))
    return records


def begun_on(run_dir: Path) -> str | None:
    """The date in the commands of the chain there: all its prompts have the same."""
    records = read_records_of(run_dir / "chain.json")
    words = [word for record in records.values() for word in record.get("command", []) if word.startswith("data.date=")]
    return words[0].partition("=")[2].strip("'") if words else None


def _command(stage: Stage, folder: Path) -> list[str]:
    """What follows the interpreter."""
    command = list(stage.command)
    if command[0].endswith(".py"):
        command[0] = str(ROOT / command[0])
    if stage.command[0] == "train.py" and (folder / "config.yaml").exists():
        command.append("resume=auto")  # it was cut off
    return command


@contextmanager
def _alone(run_dir: Path) -> Iterator[TextIO]:
    """A stage that outlives its chain keeps the next chain out."""

    def busy(note: str) -> None:
        raise MinillmError(
            f"{run_dir}: {note} is at work there; wait until it is done or end it (kill with its number), then give "
            "the same command again"
        )

    with locked(run_dir / "lock", busy) as lock:
        yield lock


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
