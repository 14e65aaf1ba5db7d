"""The work in units, each with a file of its own that is written whole: what is there is not done again. The file's
name is a hash of all that its content depends on: what was made under other settings is not taken for what is wanted.

Which units there are follows from the settings alone. The units of a model are numbered, and process r of n takes every
n-th from r on: what a unit gives does not depend on who does it, so that any number of processes gives the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from minillm.common.errors import DataError
from minillm.common.files import write_whole
from minillm.common.labels import seed_name
from minillm.evaluation.suite.settings import Suite

Kind = Literal["model", "calibration", "references", "answers", "exposure", "samples", "judge"]


@dataclass(frozen=True)
class Unit:
    """`of` is a file of prompts or a task; `chunk` numbers its records in steps of `Suite.chunk`, answered with all
    seeds. `seed`: of the judge's units alone. The source of samples, the teacher's side of exposure bias, is a hash of
    what is not among the settings."""

    kind: Kind
    source: str
    of: str = ""
    decoding: str = ""
    seed: int | None = None
    chunk: int = 0

    def __str__(self) -> str:
        """For messages: what is made of which model, file and part of the file."""
        parts = [f"{self.kind} of {self.source}", self.of, self.decoding]
        if self.kind == "judge":
            parts.append(f"seed {seed_name(self.seed)}")
        if self.kind in ("answers", "exposure"):
            parts.append(f"chunk {self.chunk + 1}")
        return ", ".join(filter(None, parts))


def file_name(suite: Suite, unit: Unit) -> str:
    depends = [asdict(unit), depends_on(suite, unit)]
    return f"{unit.kind}-{hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:20]}.json"


def depends_on(suite: Suite, unit: Unit) -> dict:
    """What the unit's result depends on beside its own fields, as plain JSON. Models are known by the
    hash of their files, those of the hub by their commit; data by the hash of the file, or of the records where it is
    no local file."""
    settings, measures, content = suite.settings, suite.measures, suite.settings["content"]
    if unit.kind == "judge":
        parts = [Unit("answers", unit.source, unit.of, unit.decoding, chunk=chunk) for chunk in chunks(suite, unit.of)]
        return {"judge": settings["suite"]["judge"], "answers": [file_name(suite, part) for part in parts]}
    found: dict = {"model": content.get(unit.source)}
    if unit.kind == "model":
        return found
    # The teacher decides on the shared vocabulary and the ends of answers, so on everything; itself it is alone.
    teacher = None if unit.source == suite.teacher else suite.teacher
    found |= {"teacher": content.get(teacher, teacher)} | {key: settings[key] for key in ("dtype", "attention")}
    found["data"] = {key: value for key, value in settings["data"].items() if key != "files"}
    if unit.kind == "calibration":
        task = asdict(suite.tasks[unit.of][0])
        return found | {"task": task | {"file": content[task["file"]]}, "limit": measures.calibration_limit}
    found |= {"file": content.get(unit.of), "limit": settings["limit"]}
    if unit.kind == "references":
        return found
    found |= {key: settings[key] for key in ("max_new_tokens", "batch_size", "chunk")}
    if unit.kind == "answers":
        shown = measures.token_rows - unit.chunk * suite.chunk if unit.decoding == measures.plain else 0
        rows = min(max(shown, 0), len(suite.records[unit.of]) - unit.chunk * suite.chunk, suite.chunk)
        size = measures.decodings[unit.decoding]
        return found | {"seeds": settings["seeds"], "no_repeat_ngram_size": size, "token_rows": rows}
    return found | {"exposure": asdict(measures.exposure)}


@dataclass(frozen=True)
class Store:
    """Finished units of a suite. `threads`: with how many the processes computed whose units were read; on a CPU they
    decide how sums are rounded."""

    suite: Suite
    threads: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.suite.run_dir / "units"

    def _file(self, unit: Unit) -> Path:
        return self.folder / file_name(self.suite, unit)

    def __contains__(self, unit: Unit) -> bool:
        return self._file(unit).exists()

    def write(self, unit: Unit, made: dict) -> None:
        threads = torch.get_num_threads() if self.suite.device.type == "cpu" else None
        text = json.dumps({"unit": asdict(unit), "threads": threads, "made": made})
        write_whole(self._file(unit), text + "\n")

    def read(self, unit: Unit) -> dict:
        """Raises DataError: it is damaged, or another process's and not in our directory."""
        file = self._file(unit)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found.get("threads") and unit.kind not in ("model", "judge"):  # those compute nothing
                self.threads.add(found["threads"])
            return found["made"]
        except FileNotFoundError as error:
            raise DataError(
                f"{file}: is not there, although it is made; all nodes must share run.dir={self.suite.run_dir}"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: damaged ({error}); delete it, and the same command makes it again") from error


def chunks(suite: Suite, file: str, limit: int | None = None) -> range:
    """Numbers of the chunks that the records of a file, or its first `limit` records, make."""
    n = len(suite.records[file][:limit])
    return range(-(-n // suite.chunk))


def units_of(suite: Suite, source: str) -> list[Unit]:
    """All that needs this model to be loaded. Those of exposure bias are the last, so that the teacher's samples for a
    chunk are made by the same process whatever the student."""
    measures, teacher = suite.measures, source == suite.teacher
    units = [Unit("model", source), *(Unit("calibration", source, task) for task in suite.tasks)]
    if measures.reference_loss:
        units += [Unit("references", source, file) for file in suite.records]
    units += answer_units(suite, source)
    if measures.exposure and suite.teacher is not None and not teacher:
        units += [
            Unit("exposure", source, file, chunk=chunk)
            for file in suite.records
            for chunk in chunks(suite, file, measures.exposure.limit)
        ]
    return units


def answer_units(suite: Suite, source: str) -> list[Unit]:
    return [
        Unit("answers", source, file, decoding, chunk=chunk)
        for file in suite.records
        for decoding in suite.measures.decodings
        for chunk in chunks(suite, file)
    ]


def judge_units(suite: Suite) -> list[Unit]:
    """The judge's units for all models together: no model is loaded for them."""
    if suite.measures.judge is None:
        return []
    return [
        Unit("judge", source, file, decoding, seed)
        for source in suite.models
        for file in suite.records
        for decoding in suite.measures.decodings
        for seed in suite.seeds
    ]


def answers(suite: Suite, store: Store, source: str, file: str, decoding: str) -> dict[int | None, list[dict]]:
    """The rows of all chunks by seed, in the order of the records."""
    rows: dict[int | None, list[dict]] = {seed: [] for seed in suite.seeds}
    for chunk in chunks(suite, file):
        for row in store.read(Unit("answers", source, file, decoding, chunk=chunk))["rows"]:
            rows[row["seed"]].append(row)
    return rows
