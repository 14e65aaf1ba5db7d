"""The progress display: a bar with figures in a terminal, one line a rollout elsewhere."""

from __future__ import annotations

import lightning as L
from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from minillm.common.console import say
from minillm.common.numbers import count

_SHOWN = {
    "start/loss": "loss",
    "train/loss": "loss",
    "train/single": "KL",
    "train/pretrain": "corpus",
    "rollout/length": "length",
    "time/tokens_per_second": "tok/s",
    "memory/peak_gb": "GB",
}
_PHASES = ("rollout", "score", "update")


def _figures(metrics: dict[str, float]) -> str:
    """The newest round in one line of 80 columns; its end is explained once, by `on_train_start`."""
    figures = [f"{name} {count(metrics[key])}" for key, name in _SHOWN.items() if key in metrics]
    shares = [f"{100 * metrics[f'time/share_{name}']:.0f}" for name in _PHASES if f"time/share_{name}" in metrics]
    return "  ".join([*figures, *(["/".join(shares) + "%"] if shares else [])])


class Progress(L.Callback):
    def __init__(self):
        self._bars: Bars | None = None
        self._start = self._main = None

    def on_train_start(self, trainer, module) -> None:
        shares = "; a/b/c% the share of the time in rollout, scoring and update" if "start" in module.stages else ""
        say(f"Each line: GB is the peak of memory{shares}.")
        if not get_console().is_terminal:
            return
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        # A rollout takes longer than the 30 seconds from which the remaining time is estimated by default.
        self._bars = Bars(*columns, console=get_console(), speed_estimate_period=1800)
        if module.in_start:
            self._start = self._bars.add_task(
                "supervised start", total=module.start.steps, completed=module.start_step, figures=""
            )
        self._main = self._bars.add_task(
            module.title, total=module.n_steps, completed=module.step, figures="", start=not module.in_start
        )
        self._bars.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
        figures = _figures(module.metrics)
        started = module.step > 0
        if self._bars is None:
            where = (
                f"step {module.step}/{module.n_steps}" if started else f"start {module.start_step}/{module.start.steps}"
            )
            say(f"{where}  {figures}")
            return
        if self._start is not None:
            self._bars.update(
                self._start, completed=module.start_step, figures="" if started else figures, visible=not started
            )
        if not module.in_start:
            self._bars.start_task(self._main)
        self._bars.update(self._main, completed=module.step, figures=figures if started else "")

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def on_train_end(self, trainer, module) -> None:
        self._stop()

    def on_exception(self, trainer, module, exception) -> None:
        self._stop()
