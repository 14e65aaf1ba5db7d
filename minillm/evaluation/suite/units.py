"""The work in units, each with a file of its own that is written whole: what is there is not done again. The file's
name is a hash of all that its content depends on, so that a run may grow and its settings may change.

Which units there are follows from the settings alone. The units of a model are numbered, and process r of n takes every
n-th from r on: what a unit gives does not depend on who does it, so that any number of processes gives the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from minillm.common.errors import DataError
from minillm.common.files import write_whole
from minillm.evaluation.suite.settings import Suite

_HOW = ("seeds", "seed", "temperature", "max_new_tokens", "batch_size", "chunk", "limit", "dtype", "attention")


@dataclass(frozen=True)
class Unit:
    """`of` is a file of prompts or a task; `chunk` numbers its records in steps of `Suite.chunk`, answered with all
    seeds. The source of samples, the teacher's side of exposure bias, is a hash of what is not among the settings."""

    kind: Literal["calibration", "references", "answers", "exposure", "samples"]
    source: str
    of: str
    decoding: str = ""
    chunk: int = 0

    def __str__(self) -> str:
        chunk = f"chunk {self.chunk + 1}" if self.kind in ("answers", "exposure") else ""
        return ", ".join(filter(None, [f"{self.kind} of {self.source}", self.of, self.decoding, chunk]))


@dataclass(frozen=True)
class Store:
    """The units of a suite, each in a file."""

    suite: Suite

    def file(self, unit: Unit) -> Path:
        depends = json.dumps([asdict(unit), self._depends_on(unit)], sort_keys=True)
        name = f"{unit.kind}-{hashlib.sha256(depends.encode()).hexdigest()[:20]}.json"
        return self.suite.run_dir / "units" / name

    def _depends_on(self, unit: Unit) -> dict:
        """What the unit's result depends on beside its own fields, as plain JSON. Models and data are known by their
        content, see `Suite.settings`."""
        suite, settings = self.suite, self.suite.settings
        measures, content = suite.measures, settings["content"]
        # The teacher decides on the shared vocabulary and the ends of answers, so on everything; itself it is alone.
        teacher = None if unit.source == suite.teacher else suite.teacher
        found = {key: settings[key] for key in _HOW if key in settings} | {"teacher": teacher}
        found |= {"contents": [content.get(name) for name in (unit.source, teacher, unit.of)]}
        found |= {"data": settings["data"] | {"files": None}}
        if unit.kind == "calibration":
            task = asdict(suite.tasks[unit.of][0])
            return found | {"task": task | {"file": content[task["file"]]}, "limit": measures.calibration_limit}
        if unit.kind == "answers":
            shown = measures.token_rows if unit.decoding == measures.plain else 0
            return found | {"no_repeat_ngram_size": measures.decodings[unit.decoding], "token_rows": shown}
        return found | ({"exposure": asdict(measures.exposure)} if unit.kind in ("exposure", "samples") else {})

    def write(self, unit: Unit, made: dict) -> None:
        write_whole(self.file(unit), json.dumps({"unit": asdict(unit), "made": made}) + "\n")

    def read(self, unit: Unit) -> dict:
        """Raises DataError: it is damaged, or another process's and not in our directory."""
        file = self.file(unit)
        try:
            return json.loads(file.read_text(encoding="utf-8"))["made"]
        except FileNotFoundError as error:
            raise DataError(f"{file}: is not there; all nodes must share run.dir={self.suite.run_dir}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}); delete it, and the same command makes it again") from error

    def answers(self, source: str, file: str, decoding: str) -> dict[int | None, list[dict]]:
        """The rows of all chunks by seed, in the order of the records."""
        rows: dict[int | None, list[dict]] = {seed: [] for seed in self.suite.seeds}
        for unit in chunks(self.suite, "answers", source, file, decoding):
            for row in self.read(unit)["rows"]:
                rows[row["seed"]].append(row)
        return rows


def chunks(
    suite: Suite, kind: Literal["answers", "exposure"], source: str, file: str, decoding: str = ""
) -> list[Unit]:
    """A unit for each chunk of the records of a file; for exposure bias, of its first `limit` records."""
    n = len(suite.records[file][: suite.measures.exposure.limit if kind == "exposure" else None])
    return [Unit(kind, source, file, decoding, chunk) for chunk in range(-(-n // suite.chunk))]


def units_of(suite: Suite, source: str) -> list[Unit]:
    """All that needs this model to be loaded. Those of exposure bias are the last, so that the teacher's samples for a
    chunk are made by the same process whatever the student."""
    measures = suite.measures
    units = [Unit("calibration", source, task) for task in suite.tasks]
    if measures.reference_loss:
        units += [Unit("references", source, file) for file in suite.records]
    for file in suite.records:
        for decoding in measures.decodings:
            units += chunks(suite, "answers", source, file, decoding)
    if measures.exposure and suite.teacher not in (None, source):
        for file in suite.records:
            units += chunks(suite, "exposure", source, file)
    return units
