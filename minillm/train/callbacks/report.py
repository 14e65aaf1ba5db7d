"""The page of a run while it is at work."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from minillm.common.console import say
from minillm.common.errors import check
from minillm.train.callbacks.boundary import find
from minillm.train.callbacks.record import RunRecord
from minillm.train.callbacks.validation import Validation


class Report(L.Callback):
    """Draws report/index.html anew after every `every` validations, and all of report/ at the end; None: at the end
    only. The page is replaced whole. If it cannot be drawn, that is a warning, and the run goes on."""

    def __init__(self, *, run_dir: Path, every: int | None = 1):
        check((every is None or every > 0, f"every={every}: wanted a positive number of validations, or null"))
        self.run_dir, self.every = Path(run_dir), every

    def on_fit_start(self, trainer, module) -> None:
        self._validation = find(trainer, Validation)
        self._seen = self._validation and self._validation.made  # of a run that goes on

    def on_train_start(self, trainer, module) -> None:
        before, self._seen = self._seen, self._validation and self._validation.made
        if self.every and self._seen != before and self._seen % self.every == 0:
            self._draw(trainer, find(trainer, RunRecord).figures(trainer, module))

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.on_train_start(trainer, module)

    def on_train_end(self, trainer, module) -> None:
        self._draw(trainer)

    def _draw(self, trainer, so_far: dict[str, float] | None = None) -> None:
        try:
            if trainer.is_global_zero:  # the others go on
                from minillm.evaluation.report import write_report

                write_report(self.run_dir, so_far=so_far)
        except Exception as error:  # whatever a drawing library may raise
            say(f"WARNING: the report cannot be drawn ({type(error).__name__}: {error}); the run goes on without")
