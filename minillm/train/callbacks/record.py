"""What a run leaves behind: metrics.csv rows, metrics.json and the exported student."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

import lightning as L
from safetensors import SafetensorError

from minillm.common.console import say
from minillm.common.errors import ModelError, StorageError
from minillm.common.files import write_whole
from minillm.common.loggers import STEP, MetricsCSV
from minillm.common.read import STOPPED
from minillm.common.saved import damage, load_saved
from minillm.models.export import export_student
from minillm.models.lora import is_adapted, save_adapter
from minillm.parallel import on_first, whole_state
from minillm.train.callbacks.boundary import find
from minillm.train.callbacks.checkpoint import Checkpoints
from minillm.train.callbacks.median import MedianStop
from minillm.train.callbacks.validation import Validation


class RunRecord(L.Callback):
    """Logs once a rollout (supervised: an optimizer step); at the end writes metrics.json, student/ and the
    adapter/ that is merged there, if one was trained.

    Args:
        export: which weights go to student/: `best` by the checkpoints' monitor, or `last`; None writes no student.
        began: seconds since the epoch at which the process began, for wall_seconds (all sessions of the run together).
    """

    def __init__(
        self, *, run_dir: Path, began: float, card: dict[str, str], export: Literal["best", "last"] | None = "best"
    ):
        self.run_dir, self.card, self.export = Path(run_dir), card, export
        self._began, self._earlier = began, 0.0
        self._module: L.LightningModule | None = None
        self._csv: MetricsCSV | None = None
        self._logged = 0  # rounds whose row is in the loggers
        self._rows = 0  # of metrics.csv, at the checkpoint this run goes on from
        self._made: tuple[int, dict[str, float]] = (-1, {})  # the row of a round
        self._waiting: dict[str, float] | None = None  # the row that comes next there

    @property
    def wall_seconds(self) -> float:
        return self._earlier + max(0.0, time.time() - self._began)  # clocks may be set back

    def state_dict(self) -> dict:
        """With how many rows metrics.csv has, and the row of this round if it is not among them yet: a checkpoint is
        written before it, and a kill may come between the two."""
        row = self._waiting if self._logged == self._module.round else self._row()
        return {"wall_seconds": self.wall_seconds, "rows": len(self._csv.rows), "row": row}

    def load_state_dict(self, state: dict) -> None:
        self._earlier, self._rows, self._waiting = state["wall_seconds"], state["rows"], state["row"]

    def on_fit_start(self, trainer, module) -> None:
        self._module = module
        self._csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
        self._csv.resume_at(self._rows)
        self._logged = module.round

    def on_train_start(self, trainer, module) -> None:
        if self._waiting is not None:
            self._log(trainer, self._waiting)
            self._waiting = None
        if module.step < module.n_steps:  # a finished run that was made longer
            (self.run_dir / "metrics.json").unlink(missing_ok=True)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        validation = find(trainer, Validation)
        if not module.at_boundary or (validation is not None and validation.owed):
            return  # owed: its row comes first
        self._log(trainer, self._row())
        self._logged = module.round

    def _row(self) -> dict[str, float]:
        if self._made[0] == self._module.round:  # for the checkpoint, a moment ago
            return self._made[1]
        step = self._module.start_step + self._module.step
        progress = {STEP: step, "progress/round": self._module.round, "progress/wall_seconds": self.wall_seconds}
        self._made = (self._module.round, self._module.metrics | progress)
        return self._made[1]

    @staticmethod
    def _log(trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, row[STEP])

    def on_train_end(self, trainer, module) -> None:
        checkpoints, validation = find(trainer, Checkpoints), find(trainer, Validation)
        figures = {} if validation is None else validation.final_figures()
        exported = {} if validation is None else validation.newest
        if checkpoints is not None and checkpoints.best is not None:
            best = checkpoints.best
            figures |= {"best/step": best["step"]} | {f"best/{name}": value for name, value in best["figures"].items()}
            if self.export == "best":
                exported = best["figures"]
                if wrong := on_first(lambda: damage(checkpoints.best_file)):
                    raise ModelError(
                        f"{checkpoints.best_file} is {wrong}; the same command with resume=auto and "
                        "callbacks.record.export=last exports the newest weights"
                    )
                trainer.strategy.load_model_state_dict(load_saved(checkpoints.best_file))
        state = None if self.export is None else whole_state(module.pair.student, keep=trainer.is_global_zero)
        # The others wait: a run has not finished on any of them before it has on all.
        on_first(lambda: self._write(trainer, module, state, figures, exported))
        module.preemption.over = True

    def _write(self, trainer, module, state: dict | None, figures: dict, exported: dict) -> None:
        """student/ and adapter/, unless there is no `state`, and metrics.json."""
        checkpoints, student = find(trainer, Checkpoints), module.pair.student
        best = None if checkpoints is None else checkpoints.best
        which = f", of step {best['step']}" if self.export == "best" and best is not None else ""
        adapter = ", adapter/" if is_adapted(student) else ""
        export = "last" if best is None else self.export
        card = self.card | {"weights": export}
        try:
            if state is not None:
                export_student(module.pair, self.run_dir / "student", card=card, figures=exported, state=state)
            if state is not None and adapter:
                save_adapter(student, self.run_dir / "adapter", state=state)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{self.run_dir}/student cannot be written ({error}); last.ckpt is there. Make room, then go on with "
                "the same command and resume=auto"
            ) from error
        median = find(trainer, MedianStop)
        if median is not None and median.stopped_at is not None:
            figures[STOPPED] = median.stopped_at
        figures |= module.counts | {"wall_seconds": self.wall_seconds}
        self._csv.require()
        write_whole(self.run_dir / "metrics.json", json.dumps(figures, indent=2) + "\n")
        if state is None:
            return
        say(
            f"Wrote {self.run_dir}: metrics.json, metrics.csv, samples/, checkpoints/{adapter}, "
            f"student/ ({export} weights{which})"
        )
        if which and best["step"] == 0 and module.step:
            say(
                f"WARNING: no validation was better in {checkpoints.monitor} than the first, so that student/ has the "
                "weights the run began with; callbacks.record.export=last exports the newest"
            )
