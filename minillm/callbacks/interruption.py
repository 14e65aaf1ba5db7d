"""One handler for the signals that ask a run to stop: ours, from the first validation on."""

from __future__ import annotations

import lightning as L


class Interruption(L.Callback):
    """First of the callbacks, so that the handler is there before anything that takes time. Lightning has put up its
    own just before, and at the end of the fit puts back those from before the fit."""

    def on_train_start(self, trainer, module) -> None:
        module.preemption.watch()
