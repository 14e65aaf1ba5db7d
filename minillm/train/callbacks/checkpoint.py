"""last.ckpt to go on from, with previous.ckpt before it, and best.ckpt to keep; each written aside and renamed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from minillm.common.console import say
from minillm.common.errors import Interrupted, ModelError, StorageError
from minillm.common.files import keep_as, put_in_place
from minillm.common.read import higher_is_better
from minillm.common.saved import damage, load_saved
from minillm.train.callbacks.boundary import BoundaryCallback, find
from minillm.train.callbacks.validation import Validation


class Checkpoints(BoundaryCallback):
    """Saves at rollout boundaries: `last.ckpt` (everything) every `every` optimizer steps, at the end and when a signal
    asks the run to stop, `best.ckpt` (weights) at each validation whose `monitor` is the best so far, from the start
    of MiniLLM on. The one before either is kept as previous.ckpt and previous_best.ckpt.

    A disk that is full is said, and tried again at the next boundary; at the end it is an error.

    Args:
        monitor: a figure of the validation: `rouge_l`, higher is better (the paper's choice for every method it
            compares), `loss` on the references, lower (its choice for the start of MiniLLM), or `reverse_kl`, lower.
    """

    def __init__(
        self, *, run_dir: Path, every: int | None = 100, monitor: Literal["rouge_l", "loss", "reverse_kl"] = "rouge_l"
    ):
        super().__init__(every)
        self.folder, self.monitor = Path(run_dir) / "checkpoints", monitor
        self.best: dict | None = None  # step and figures of the best validation
        self._late = False  # last.ckpt could not be written when it was due

    @property
    def last_file(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best_file(self) -> Path:
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def on_fit_start(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._settle_best()
        self.best = trainer.strategy.broadcast(self.best)

    def on_train_start(self, trainer, module) -> None:
        self._judge(trainer, module)
        if trainer.should_stop:  # the median rule, at a validation that the interrupted run still owed
            self._save(trainer, self.last_file, must=True)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
        self._judge(trainer, module)
        if self.due(module) or self._late or trainer.should_stop:
            self._late = not self._save(trainer, self.last_file, must=trainer.should_stop)

    def on_exception(self, trainer, module, exception) -> None:
        if isinstance(exception, Interrupted):
            self._save(trainer, self.last_file, must=True)
            say(f"Saved {self.last_file}: {module.title}, step {module.step} of {module.n_steps}")

    def _judge(self, trainer, module) -> None:
        """Keep the weights if the validation just made, of these very weights, is the best."""
        validation = find(trainer, Validation)
        if validation is None or module.in_start or validation.newest_step != module.step:
            return
        if self.best is not None and self.best["step"] == module.step:
            return
        figures = validation.newest
        if self.monitor not in figures:  # refused by the build where the best is exported
            return
        old = None if self.best is None else self.best["figures"][self.monitor]
        if wins(figures[self.monitor], old, higher=bool(higher_is_better(self.monitor))):
            best = {"step": module.step, "figures": dict(figures)}
            if self._save(trainer, self.best_file, weights_only=True, must=trainer.should_stop):
                self.best = best

    def _save(self, trainer, file: Path, *, weights_only: bool = False, must: bool = False) -> bool:
        """False where the disk does not take it; with `must` that is a StorageError. What was there stays."""
        aside = file.with_name(f".{file.name}.tmp")
        before = file.with_name("previous.ckpt" if file == self.last_file else "previous_best.ckpt")
        problem, met = None, False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(aside, weights_only=weights_only)
            met = True
            if trainer.is_global_zero:
                if file.exists():
                    keep_as(file, before)
                put_in_place(aside, file)
        except OSError as error:
            aside.unlink(missing_ok=True)
            there = f"{file} is as it was" if file.exists() else "there is none yet"
            problem = f"{file} cannot be written ({error.strerror or error}); {there}"
            if not met:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other processes wait
        problem = trainer.strategy.broadcast(problem)
        if problem and must:
            raise StorageError(f"{problem}. Make room, then go on with the same command and resume=auto")
        if problem:
            then = "the best so far stays" if weights_only else "tried again at the next boundary"
            say(f"WARNING: {problem}; the run goes on, {then}")
        return problem is None

    def _settle_best(self) -> None:
        """best.ckpt may be of steps that were made after last.ckpt and are lost, or damaged: find the one that is meant
        in the files, or forget it."""
        wanted = None if self.best is None else self.best["step"]
        if _is_of_step(self.best_file, wanted):
            return
        before = self.best_file.with_name("previous_best.ckpt")
        if wanted is not None and _is_of_step(before, wanted):
            before.replace(self.best_file)
            say(f"{self.best_file} was not of this checkpoint's best step {wanted}; the one before it is, and is back")
            return
        if self.best_file.exists():
            self.best_file.unlink()
            say(f"{self.best_file} was not of this checkpoint's best step and is removed")
        if self.best is not None:
            say(f"WARNING: the best weights so far, of step {wanted}, are lost: the best is sought anew from here on")
            self.best = None


def wins(new: float, old: float | None, *, higher: bool) -> bool:
    """Whether a figure replaces the best so far, which is None where there is none yet. Of equal figures the later one
    wins, so that a figure that never moves does not keep the untrained student. A NaN or an infinity loses against
    every finite figure, and does not replace another."""
    if old is None or not math.isfinite(new):
        return old is None
    if not math.isfinite(old):
        return True
    return new >= old if higher else new <= old


def _is_of_step(file: Path, step: int | None) -> bool:
    """Is the file whole and of that step? With None: is it not there?"""
    if step is None or not file.exists():
        return step is None and not file.exists()
    try:
        return damage(file) is None and load_saved(file)["minillm"]["step"] == step
    except (ModelError, KeyError):
        return False
