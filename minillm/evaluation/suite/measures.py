"""The config group `suite`: what is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minillm.common.checks import collect
from minillm.common.errors import check
from minillm.data import ChoiceTask
from minillm.evaluation.judge.judge import Judge
from minillm.evaluation.metrics import FIGURES, Figure, figures_at


@dataclass(frozen=True)
class Exposure:
    """`samples` a prompt and model at temperature 1, of the first `limit` prompts of each file."""

    samples: int = 10
    seed: int = 10
    limit: int | None = None

    def __post_init__(self):
        check(
            (self.samples > 0, f"samples={self.samples}: wanted a positive number"),
            (self.limit is None or self.limit > 0, f"limit={self.limit}: wanted a positive number of prompts, or null"),
        )


@dataclass(frozen=True)
class Calibration:
    """A task of calibration: a file and its texts, see `ChoiceTask`; a file of null leaves it out."""

    file: str | None
    instruction: str
    words: list[str]
    input: str = ""

    def __post_init__(self):
        _ = self.task

    @property
    def task(self) -> ChoiceTask:
        return ChoiceTask(instruction=self.instruction, words=tuple(self.words), input=self.input)


@dataclass(frozen=True)
class Measures:
    """`decodings`: no_repeat_ngram_size by name; the first without a limit is that of `plain`. `figures`: import paths
    of figures of one's own."""

    name: str
    teacher_row: bool
    decodings: dict[str, int]
    reference_loss: bool
    exposure: Exposure | None
    calibration: dict[str, Any]
    calibration_limit: int | None
    token_rows: int
    judge: Judge | None
    figures: list[str] = field(default_factory=list)

    def __post_init__(self):
        figures_at(self.figures)
        sizes = self.decodings.values()
        limit = self.calibration_limit
        check(
            (
                len(self.decodings) > 0 and all(type(size) is int and size >= 0 for size in sizes),
                f"decodings={self.decodings}: wanted no_repeat_ngram_size by name, for example {{plain: 0}}",
            ),
            *(
                (re.fullmatch(r"\w+", str(name)) is not None, f"{group}.{name}: wanted a name of letters and digits")
                for group, names in (("decodings", self.decodings), ("calibration", self.calibration))
                for name in names
            ),
            (limit is None or limit > 0, f"calibration_limit={limit}: wanted a positive number of rows, or null"),
            (self.token_rows >= 0, f"token_rows={self.token_rows}: wanted 0 or more"),
        )

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        """With those of one's own, which `figures` names by their import paths."""
        return (*FIGURES, *figures_at(self.figures))

    @property
    def plain(self) -> str | None:
        """The decoding without a limit on n-grams, whose tokens and positions are shown."""
        return next((name for name, size in self.decodings.items() if size == 0), None)


def read_measures(problems: list[str], node: Mapping) -> tuple[Measures | None, dict[str, Calibration]]:
    """Read the plain config group `suite`: the measures, and the calibration tasks that are right. What is wrong is
    added to `problems`."""
    node, tasks = dict(node), {}
    if isinstance(node.get("exposure"), Mapping):
        node["exposure"] = _as(Exposure, node["exposure"])
    judge = node.get("judge")
    if isinstance(judge, Mapping):
        node["judge"] = _as(Judge, judge) if judge.get("base_url") is not None else None
        if node["judge"] is None and judge.get("model") is not None:
            problems.append(f"suite.judge.base_url=null with suite.judge.model={judge['model']}: wanted the address")
    if isinstance(node.get("calibration"), Mapping):
        for name, task in node["calibration"].items():
            if not isinstance(task, Mapping):
                problems.append(f"suite.calibration.{name}={task!r}: wanted file, instruction, input and words")
            elif calibration := collect(problems, f"suite.calibration.{name}", _as(Calibration, task)):
                tasks[name] = calibration
        node["calibration"] = tasks
    return collect(problems, "suite", _as(Measures, node)), tasks


def _as(kind: type, node: Mapping) -> dict:
    return {"_target_": f"{kind.__module__}.{kind.__name__}", **node}
