"""One handler for the signals that ask a run to stop: ours, from the first validation on."""

from __future__ import annotations

import lightning as L

from minillm.parallel import TRAINING, note


class Interruption(L.Callback):
    """First of the callbacks, so that the handler is there before anything that takes time. Lightning puts up its own
    just before, and at the end of the fit puts back those from before the fit."""

    def on_fit_start(self, trainer, module) -> None:
        # Lightning's handler of SIGTERM is there while processes wait for one another to begin: it would end the run
        # without a checkpoint, and it sends a message in the middle of others.
        trainer._signal_connector._sigterm_notifier_fn = module.preemption.note

    def on_train_start(self, trainer, module) -> None:
        module.preemption.watch()
        note(TRAINING)  # from here on a signal makes this process save
