"""What a run leaves behind: metrics.csv rows, metrics.json and the exported student."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

import lightning as L
import torch

from minillm.callbacks.boundary import find
from minillm.callbacks.checkpoint import Checkpoints
from minillm.callbacks.median import MedianStop
from minillm.callbacks.validation import Validation
from minillm.console import say
from minillm.loggers import STEP, MetricsCSV
from minillm.models.export import export_student
from minillm.models.lora import is_adapted, save_adapter
from minillm.runs import STOPPED


class RunRecord(L.Callback):
    """Logs once a rollout (supervised: an optimizer step); at the end writes metrics.json, student/ and the
    adapter/ that is merged there, if one was trained.

    Args:
        export: which weights go to student/: `best` by the checkpoints' monitor, or `last`.
        began: seconds since the epoch at which the process began, for wall_seconds (all sessions of the run together).
    """

    def __init__(self, *, run_dir: Path, began: float, card: dict[str, str], export: Literal["best", "last"] = "best"):
        self.run_dir, self.card, self.export = Path(run_dir), card, export
        self._began, self._earlier = began, 0.0

    @property
    def wall_seconds(self) -> float:
        return self._earlier + time.time() - self._began

    def state_dict(self) -> dict:
        return {"wall_seconds": self.wall_seconds}

    def load_state_dict(self, state: dict) -> None:
        self._earlier = state["wall_seconds"]

    def on_fit_start(self, trainer, module) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.resume_at(module.start_step + module.step if module.round else -1)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
        step = module.start_step + module.step
        progress = {STEP: step, "progress/round": module.round, "progress/wall_seconds": self.wall_seconds}
        for logger in trainer.loggers:
            logger.log_metrics(module.metrics | progress, step)

    def on_train_end(self, trainer, module) -> None:
        checkpoints, validation = find(trainer, Checkpoints), find(trainer, Validation)
        figures = {} if validation is None else validation.final_figures()
        exported = {} if validation is None else validation.newest
        if checkpoints is not None and checkpoints.best is not None:
            best = checkpoints.best
            figures |= {"best/step": best["step"]} | {f"best/{name}": value for name, value in best["figures"].items()}
            if self.export == "best":
                exported = best["figures"]
                weights = torch.load(checkpoints.best_file, map_location=module.device, weights_only=True)["state_dict"]
                module.load_state_dict(weights)
        export_student(
            module.pair, self.run_dir / "student", card=self.card | {"weights": self.export}, figures=exported
        )
        adapter = ""
        if is_adapted(module.pair.student):
            save_adapter(module.pair.student, self.run_dir / "adapter")
            adapter = ", adapter/"
        median = find(trainer, MedianStop)
        if median is not None and median.stopped_at is not None:
            figures[STOPPED] = median.stopped_at
        figures |= module.counts | {"wall_seconds": self.wall_seconds}
        (self.run_dir / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
        say(
            f"Wrote {self.run_dir}: metrics.json, metrics.csv, samples/, checkpoints/{adapter}, "
            f"student/ ({self.export} weights)"
        )
