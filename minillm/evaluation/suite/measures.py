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
            (self.limit is None or self.limit > 0, f"limit={self.limit}: wanted a positive number, or null"),
        )


@dataclass(frozen=True)
class Calibration(ChoiceTask):
    """A zero-shot task with the file of its rows; a file of null leaves the task out."""

    file: str | None = None


@dataclass(frozen=True)
class Measures:
    """`decodings`: no_repeat_ngram_size by name. `figures`: import paths of figures of one's own."""

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
        sizes, limit = self.decodings.values(), self.calibration_limit
        names = [*self.decodings, *self.calibration]
        check(
            (
                len(sizes) > 0 and all(type(size) is int and size >= 0 for size in sizes),
                f"decodings={self.decodings}: wanted no_repeat_ngram_size by name, for example {{plain: 0}}",
            ),
            *((re.fullmatch(r"\w+", name), f"{name}: wanted a name of letters and digits") for name in names),
            (limit is None or limit > 0, f"calibration_limit={limit}: wanted a positive number of rows, or null"),
            (self.token_rows >= 0, f"token_rows={self.token_rows}: wanted 0 or more"),
        )

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        return (*FIGURES, *figures_at(self.figures))

    @property
    def plain(self) -> str | None:
        """The first decoding without a limit on n-grams; its tokens and positions are shown."""
        return next((name for name, size in self.decodings.items() if size == 0), None)


def read_measures(problems: list[str], node: Mapping) -> tuple[Measures | None, dict[str, Calibration]]:
    """The plain config group `suite`: the measures, and the valid calibration tasks. Problems are added to
    `problems`."""
    node, tasks = dict(node), {}
    for key, kind in (("exposure", Exposure), ("judge", Judge)):
        if isinstance(node.get(key), Mapping):
            node[key] = _as(kind, node[key])
    if node.get("judge") and node["judge"].get("base_url") is None:  # the default: no judge
        if node["judge"].get("model") is not None:
            problems.append("suite.judge.base_url=null, but suite.judge.model is given: wanted the address too")
        node["judge"] = None
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
