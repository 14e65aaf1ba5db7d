"""last.ckpt to go on from, best.ckpt to keep; each written aside and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from minillm.callbacks.boundary import BoundaryCallback
from minillm.callbacks.validation import Validation
from minillm.errors import check


class Checkpoints(BoundaryCallback):
    """Saves at rollout boundaries: `last.ckpt` (everything) every `every` optimizer steps and at the end, `best.ckpt`
    (weights) at each validation whose `monitor` is the best so far.

    Args:
        monitor: a figure of the validation, `reverse_kl` or `rouge_l` (the paper's choice); mode: which way is better.
    """

    def __init__(
        self, *, run_dir: Path, every: int | None = 100, monitor: str = "rouge_l", mode: Literal["min", "max"] = "max"
    ):
        check(
            (every is None or every > 0, f"every={every}: wanted a positive number of optimizer steps, or null"),
            (monitor in ("reverse_kl", "rouge_l"), f"monitor={monitor}: wanted reverse_kl or rouge_l"),
            (mode in ("min", "max"), f"mode={mode}: wanted min or max"),
        )
        super().__init__(every)
        self.folder = Path(run_dir) / "checkpoints"
        self.monitor, self.mode = monitor, mode
        self.best: dict | None = None
        self._judged: int | None = None

    @property
    def last_file(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best_file(self) -> Path:
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict:
        return {"best": self.best, "judged": self._judged}

    def load_state_dict(self, state: dict) -> None:
        self.best, self._judged = state["best"], state["judged"]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        validation = next((each for each in trainer.callbacks if isinstance(each, Validation)), None)
        if validation is not None and not module.in_start and validation.newest_step != self._judged:
            self._judged = validation.newest_step
            value = validation.newest[self.monitor]
            better = self.best is None or (
                value > self.best["value"] if self.mode == "max" else value < self.best["value"]
            )
            if better:
                self.best = {"value": value, "step": module.step, self.monitor: value}
                self._save(trainer, self.best_file, weights_only=True)
        if self.due(module) or trainer.should_stop:
            self._save(trainer, self.last_file)

    def _save(self, trainer, file: Path, weights_only: bool = False) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.tmp")
        trainer.save_checkpoint(aside, weights_only=weights_only)
        aside.replace(file)
