"""The work in units, each with a file of its own that is written whole: what is there is not done again.

Which units there are follows from the settings alone. The units of a model are numbered, and process r of n takes every
n-th from r on: what a unit gives does not depend on who does it, so that any number of processes gives the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from minillm.errors import DataError
from minillm.files import write_whole
from minillm.suite.settings import Suite

Kind = Literal["model", "calibration", "references", "answers", "exposure", "samples", "judge"]


@dataclass(frozen=True)
class Unit:
    """`of` is a file of prompts or a task; `chunk` numbers its records in steps of `Suite.chunk`, answered with all
    seeds. `seed`: of the judge's units alone. The source of samples, the teacher's side of exposure bias, is a hash of
    what they depend on."""

    kind: Kind
    source: str
    of: str = ""
    decoding: str = ""
    seed: int | None = None
    chunk: int = 0

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{digest[:20]}.json"


@dataclass(frozen=True)
class Store:
    """Finished units in `folder`."""

    folder: Path

    def __contains__(self, unit: Unit) -> bool:
        return (self.folder / unit.file_name).exists()

    def write(self, unit: Unit, made: dict) -> None:
        write_whole(self.folder / unit.file_name, json.dumps({"unit": asdict(unit), "made": made}) + "\n")

    def read(self, unit: Unit) -> dict:
        """Raises DataError: it is damaged."""
        file = self.folder / unit.file_name
        try:
            return json.loads(file.read_text(encoding="utf-8"))["made"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}); delete it, and the same command makes it again") from error


def chunks(suite: Suite, file: str, limit: int | None = None) -> range:
    """Of the records of a file, or of its first `limit`."""
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
    """Of all models: nothing is loaded for them."""
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
