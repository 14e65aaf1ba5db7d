"""last.ckpt to go on from, with previous.ckpt before it; start.ckpt and best.ckpt to keep; each written aside and
renamed."""

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

Monitor = Literal["rouge_l", "loss", "reverse_kl", "reverse_kl_sampled", "reverse_kl_per_byte"]


class Checkpoints(BoundaryCallback):
    """Saves at rollout boundaries: `last.ckpt` (everything) every `every` optimizer steps, at the end and when a signal
    asks the run to stop, `best.ckpt` (weights) at each validation whose `monitor` is the best so far, from the start
    of MiniLLM on. The one before either is kept as previous.ckpt and previous_best.ckpt. `start.ckpt` has the weights
    behind the supervised start, if there is one.

    A full disk ends the run; what was there stays, and the run goes on from it.

    Args:
        monitor: a figure of the validation: `rouge_l`, higher is better (the paper's choice for every method it
            compares), `loss` on the references, lower (its choice for the start of MiniLLM), or `reverse_kl`, lower,
            with a teacher on a vLLM server `reverse_kl_sampled`, with one that has tokens of its own
            `reverse_kl_per_byte`.
    """

    def __init__(self, *, run_dir: Path, every: int | None = 100, monitor: Monitor = "rouge_l"):
        super().__init__(every)
        self.folder, self.monitor = Path(run_dir) / "checkpoints", monitor
        self.last_file, self.best_file = self.folder / "last.ckpt", self.folder / "best.ckpt"
        self.best: dict | None = None  # step and figures of the best validation

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def on_fit_start(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._find_best()
        self.best = trainer.strategy.broadcast(self.best)

    def on_train_start(self, trainer, module) -> None:
        self._save_if_best(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
        if module.start_step and module.step == 0 and not module.in_start:
            self._save(trainer, self.folder / "start.ckpt", weights_only=True)
        self._save_if_best(trainer, module)
        if self.due(module) or trainer.should_stop:
            self._save(trainer, self.last_file)

    def on_exception(self, trainer, module, exception) -> None:
        if isinstance(exception, Interrupted) and module.whole:
            self._save(trainer, self.last_file)
            say(f"Saved {self.last_file}: {module.title}, step {module.step} of {module.n_steps}")

    def _save_if_best(self, trainer, module) -> None:
        """Keep the weights if the validation just made, of these very weights, is the best."""
        validation, best = find(trainer, Validation), self.best
        if validation is None or not validation.is_of(module) or (best and best["step"] == module.step):
            return
        figures = validation.newest
        if self.monitor not in figures:  # the build refuses it where the best is exported
            return
        old = None if best is None else best["figures"][self.monitor]
        if wins(figures[self.monitor], old, higher=bool(higher_is_better(self.monitor))):
            self._save(trainer, self.best_file, weights_only=True)
            self.best = {"step": module.step, "figures": dict(figures)}

    def _save(self, trainer, file: Path, *, weights_only: bool = False) -> None:
        """Raises StorageError on all processes: the disk does not take it. What was there stays."""
        aside, problem, saved = file.with_name(f".{file.name}.tmp"), None, False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if trainer.is_global_zero:
                aside.unlink(missing_ok=True)  # a symbolic link would be followed
            trainer.save_checkpoint(aside, weights_only=weights_only)
            saved = True
            if trainer.is_global_zero:
                if file.exists() and _before(file) != file:
                    keep_as(file, _before(file))
                put_in_place(aside, file)
        except OSError as error:
            aside.unlink(missing_ok=True)
            problem = f"{file} cannot be written ({error.strerror or error}); what was there is as it was"
            if not saved:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other processes wait
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise StorageError(f"{problem}. Make room, then go on with the same command and resume=auto")

    def _find_best(self) -> None:
        """best.ckpt may be damaged, or of steps after last.ckpt, which are lost: take the file of the step that the
        checkpoint names, or forget it."""
        file, step = self.best_file, self.best and self.best["step"]
        if self.best is None:
            if file.exists():
                file.unlink()
                say(f"{file} was not of this checkpoint's best step and is removed")
        elif not _is_of_step(file, step):
            if _is_of_step(_before(file), step):
                _before(file).replace(file)
                say(f"{file} was not of this checkpoint's best step {step}; the one before it is, and is back")
            else:
                file.unlink(missing_ok=True)
                self.best = None
                say(f"WARNING: the best weights so far, of step {step}, are lost: the best is sought anew from here on")


def _before(file: Path) -> Path:
    return file.with_name(file.name.replace("last", "previous").replace("best", "previous_best"))


def _is_of_step(file: Path, step: int) -> bool:
    """Whether the file is whole and of that step."""
    try:
        return file.exists() and damage(file) is None and load_saved(file)["minillm"]["step"] == step
    except (ModelError, KeyError):
        return False


def wins(new: float, old: float | None, *, higher: bool) -> bool:
    """Whether a figure replaces the best so far, which is None where there is none yet. Of equal figures the later one
    wins, so that a figure that never moves does not keep the untrained student. A NaN or an infinity loses against
    every finite figure, and does not replace another."""
    if old is None or not math.isfinite(new):
        return old is None
    if not math.isfinite(old):
        return True
    return new >= old if higher else new <= old
