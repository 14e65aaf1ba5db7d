"""Hopeless trials of a sweep stop early: the median rule over what their siblings had reached at the same step."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, median
from typing import Literal

import lightning as L

from minillm.common.console import say
from minillm.common.errors import check
from minillm.common.numbers import count
from minillm.common.read import TRIALS, RunFiles, higher_is_better, read_rows
from minillm.train.callbacks.boundary import find
from minillm.train.callbacks.validation import Validation


class MedianStop(L.Callback):
    """At a validation after `warmup_steps`, ends the run if its best figure so far is worse than the median of the
    siblings' running means up to this step (Golovin et al., Google Vizier, section 3.2.1: the median stopping rule).

    Siblings are the trials beside this one that have come at least as far, finished or not, so that trials side by
    side count too. They are read from their metrics.csv alone, whoever writes it. A run that is stopped ends as others
    do, with metrics.json and student/. Nothing is stopped where the run is not a trial of a sweep.

    Its place is behind Validation and before Checkpoints, which save last.ckpt of a run that ends.

    Args:
        monitor: the figure of the validation. warmup_steps: optimizer steps (the start's too) before which none stops.
        min_siblings: how many siblings must have come as far.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        monitor: Literal["rouge_l", "loss", "reverse_kl"] = "reverse_kl",
        warmup_steps: int = 100,
        min_siblings: int = 3,
    ):
        check(
            (warmup_steps >= 0, f"warmup_steps={warmup_steps}: wanted 0 or more optimizer steps"),
            (min_siblings > 0, f"min_siblings={min_siblings}: wanted a positive number of trials"),
        )
        self.run_dir, self.figure = Path(run_dir), f"val/{monitor}"
        self.warmup_steps, self.min_siblings = warmup_steps, min_siblings
        self.stopped_at: int | None = None

    def on_train_start(self, trainer, module) -> None:
        if not (self.run_dir.parent / TRIALS).is_dir():
            say(f"callbacks.median: {self.run_dir} is no trial of a sweep (-m): nothing is stopped.")
        # Of a resumed run: the validation that its checkpoint holds, or that it owed and has just made.
        if 0 < module.step < module.n_steps:
            self._judge(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.at_boundary:
            self._judge(trainer, module)

    def _judge(self, trainer, module) -> None:
        """Ends the run if the validation just made, of these very weights, is hopeless."""
        validation = find(trainer, Validation)
        if module.in_start or validation is None or validation.newest_step != module.step:
            return
        step = module.start_step + module.step
        if step < self.warmup_steps or trainer.should_stop:
            return
        # One process reads and all follow: files change between two looks.
        reason = trainer.strategy.broadcast(self._reason(step) if trainer.is_global_zero else None)
        if reason:
            self.stopped_at = module.step
            trainer.should_stop = True
            say(f"Stopped early at optimizer step {module.step}: {reason}")

    def _reason(self, step: int) -> str | None:
        own = curve(self.run_dir, self.figure)
        if not (self.run_dir.parent / TRIALS).is_dir() or not own:
            return None
        others = [
            curve(each, self.figure)
            for each in sorted(self.run_dir.parent.iterdir())
            if each.is_dir() and each.name not in (TRIALS, self.run_dir.name)
        ]
        return hopeless(own, others, step, higher=bool(higher_is_better(self.figure)), min_siblings=self.min_siblings)


def curve(folder: Path, figure: str) -> list[tuple[float, float]]:
    """(optimizer step, finite value) of a run's figure."""
    points = RunFiles(folder.name, folder, "", rows=tuple(read_rows(folder / "metrics.csv"))).curve(figure)
    return [point for point in points if math.isfinite(point[1])]


def hopeless(
    own: list[tuple[float, float]],
    others: list[list[tuple[float, float]]],
    step: int,
    *,
    higher: bool,
    min_siblings: int,
) -> str | None:
    """Why a run with the curve `own` should stop at `step`, or None. Curves are (step, value) in order of steps."""
    reached = [points for points in others if points and points[-1][0] >= step]
    means = [mean(value for at, value in points if at <= step) for points in reached if points[0][0] <= step]
    mine = [value for at, value in own if at <= step]
    if len(means) < min_siblings or not mine:
        return None
    best, middle = (max if higher else min)(mine), median(means)
    if best >= middle if higher else best <= middle:
        return None
    return (
        f"its best figure so far, {count(best, 4)}, is worse than {count(middle, 4)}, the median of the running means "
        f"of {len(means)} siblings"
    )
