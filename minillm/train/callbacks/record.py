"""What a run leaves behind: rows of metrics.csv, metrics.json and the exported student."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
from safetensors import SafetensorError

from minillm.common.console import say
from minillm.common.errors import ModelError, StorageError
from minillm.common.files import write_whole
from minillm.common.saved import damage, load_saved
from minillm.models.adapter import is_adapted, save_adapter
from minillm.models.export import export_student
from minillm.parallel import on_first, whole_state
from minillm.train.callbacks.boundary import find
from minillm.train.callbacks.checkpoint import Checkpoints
from minillm.train.callbacks.validation import Validation
from minillm.train.card import card_text, check_terms
from minillm.train.loggers import STEP, MetricsCSV, log_row


class Rows(L.Callback):
    """Logs each rollout (supervised: optimizer step) before it is validated and saved, so that metrics.csv has every
    row up to a checkpoint's step. What is of later steps goes when a run goes on from it."""

    def on_train_start(self, trainer, module) -> None:
        csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
        csv.resume_at(module.start_step + module.step if trainer.ckpt_path else None)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.at_boundary:
            seconds = find(trainer, RunRecord).wall_seconds
            progress = {"progress/round": module.round, "progress/wall_seconds": seconds}
            log_row(trainer, module.metrics | {STEP: module.start_step + module.step} | progress)


class RunRecord(L.Callback):
    """At the end writes metrics.json, student/ and the adapter/ that is merged there, if one was trained.

    Args:
        export: which weights go to student/: `best` by the checkpoints' monitor, or `last`; None writes no student.
        began: seconds since the epoch at which the process began, for wall_seconds (all sessions of the run together).
        plain, command: the config and what the user typed, for the model card; license, language: see `card_text`.
    """

    def __init__(
        self, *, run_dir: Path, began: float, plain: dict, command: str, license: str | None = None,
        language: str | list[str] | None = None, export: Literal["best", "last"] | None = "best",
    ):  # fmt: skip
        check_terms(license, language)
        self.run_dir, self.export, self.command = Path(run_dir), export, command
        self.card = partial(card_text, plain, [command])
        self._began, self._earlier = began, 0.0

    @property
    def wall_seconds(self) -> float:
        return self._earlier + max(0.0, time.time() - self._began)  # clocks may be set back

    def state_dict(self) -> dict:
        return {"wall_seconds": self.wall_seconds, "command": self.command}

    def load_state_dict(self, state: dict) -> None:
        self._earlier = state["wall_seconds"]

    def on_train_start(self, trainer, module) -> None:
        if module.step < module.n_steps:  # a finished run that was made longer
            (self.run_dir / "metrics.json").unlink(missing_ok=True)

    def on_train_end(self, trainer, module) -> None:
        checkpoints, validation = find(trainer, Checkpoints), find(trainer, Validation)
        exported = validation.newest if validation else {}
        best = checkpoints.best if checkpoints else None
        weights = "last" if best is None else self.export
        figures = self.figures(trainer, module)
        if validation:
            validation.show_stages(best)
        if weights == "best":
            exported = best["figures"]
            if wrong := on_first(lambda: damage(checkpoints.best_file)):
                raise ModelError(
                    f"{checkpoints.best_file} is {wrong}; the same command with resume=auto and "
                    "callbacks.record.export=last exports the newest weights"
                )
            trainer.strategy.load_model_state_dict(load_saved(checkpoints.best_file))
        against = validation and validation.rouge_against
        self.card = partial(self.card, figures=exported, weights=weights, against=against)
        state = None if self.export is None else whole_state(module.pair.student, keep=trainer.is_global_zero)

        def write() -> None:
            if state is not None:
                self._export(module.pair, state)
            write_whole(self.run_dir / "metrics.json", json.dumps(figures, indent=2) + "\n")

        # The others wait: a run has not finished on any of them before it has on all.
        on_first(write)
        module.preemption.over = True
        if self.export is not None and trainer.is_global_zero:
            which = f" of step {best['step']}" if weights == "best" else ""
            say(f"Wrote {self.run_dir}: metrics.json, metrics.csv, samples/, student/ ({weights} weights{which})")
            if which and best["step"] == 0 and module.step:
                say(
                    f"WARNING: no validation was better in {checkpoints.monitor} than the first, so that student/ has "
                    "the weights the run began with; callbacks.record.export=last exports the newest"
                )
        if validation and (change := validation.change()):
            say(change)

    def figures(self, trainer, module) -> dict[str, float]:
        """What metrics.json has at the end, as far as it is known."""
        checkpoints, validation = find(trainer, Checkpoints), find(trainer, Validation)
        figures, best = validation.final_figures() if validation else {}, checkpoints and checkpoints.best
        if best:
            figures |= {"best/step": best["step"]} | {f"best/{name}": value for name, value in best["figures"].items()}
        return figures | module.counts | {"wall_seconds": self.wall_seconds}

    def _export(self, pair, state: dict) -> None:
        """student/, and adapter/ if one was trained."""
        try:
            export_student(pair, self.run_dir / "student", card=self.card(), state=state)
            if is_adapted(pair.student):
                save_adapter(pair.student, self.run_dir / "adapter", state=state)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{self.run_dir}/student cannot be written ({error}); last.ckpt is there. Make room, then go on with "
                "the same command and resume=auto"
            ) from error
