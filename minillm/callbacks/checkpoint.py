"""last.ckpt to go on from, best.ckpt to keep; each written aside and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from minillm.callbacks.boundary import BoundaryCallback, find
from minillm.callbacks.validation import Validation

_SIGN = {"rouge_l": 1, "reverse_kl": -1, "loss": -1}  # which way is better


class Checkpoints(BoundaryCallback):
    """Saves at rollout boundaries: `last.ckpt` (everything) every `every` optimizer steps and at the end, `best.ckpt`
    (weights) at each validation whose `monitor` is the best so far, from the start of MiniLLM on.

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

    def on_train_start(self, trainer, module) -> None:
        self._judge(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
        self._judge(trainer, module)
        if self.due(module) or trainer.should_stop:
            self._save(trainer, self.last_file)

    def _judge(self, trainer, module) -> None:
        """Keep the weights if the validation just made, of these very weights, is the best."""
        validation = find(trainer, Validation)
        if validation is None or module.in_start or validation.newest_step != module.step:
            return
        if self.best is not None and self.best["step"] == module.step:
            return
        figures, sign = validation.newest, _SIGN[self.monitor]
        if self.monitor not in figures:  # refused by the build where the best is exported
            return
        if self.best is None or sign * figures[self.monitor] > sign * self.best["figures"][self.monitor]:
            self.best = {"step": module.step, "figures": dict(figures)}
            self._save(trainer, self.best_file, weights_only=True)

    def _save(self, trainer, file: Path, weights_only: bool = False) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.tmp")
        trainer.save_checkpoint(aside, weights_only=weights_only)
        if trainer.is_global_zero:
            aside.replace(file)
        trainer.strategy.barrier()
