"""Signals that ask a run to stop: one handler notes them, and the run acts where a checkpoint can stand.

SIGTERM and SIGUSR1 are what schedulers send (SLURM's --signal, Kubernetes, spot machines), SIGUSR2 is submitit's,
SIGINT Ctrl-C, and SIGHUP the end of a terminal.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L

from minillm.common.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class Preemption:
    """Whether this process has been asked to stop. Processes of one run agree on it elsewhere."""

    def __init__(self):
        self.requested: str | None = None  # the signal's name
        self.over = False  # the run has finished and is saved: a signal has nothing to stop

    def watch(self) -> None:
        """Take the signals over; only the main thread of a process may. SIGHUP stays ignored under nohup."""
        if _in_main_thread():
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self.note)

    def note(self, number: int, frame) -> None:
        """The handler."""
        if self.over:
            return
        again = ""
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # the second one ends the process, whatever it is in the middle of
            again = "; Ctrl-C again ends it without saving"
        if self.requested is None:  # a scheduler may send several
            self.requested = signal.Signals(number).name
            # Not print: a handler may run in the middle of one.
            os.write(2, f"{self.requested}: saving at the next possible place, then exit{again}\n".encode())

    def rest(self) -> None:
        """Ignore signals from now on, also while the interpreter ends, which puts back its own handlers."""
        self.over = True
        if _in_main_thread():
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)


class Interruption(L.Callback):
    """The first callback, so that the handler is there before anything that takes time. Lightning sets its own just
    before, and at the end of the fit puts back those from before the fit."""

    def on_fit_start(self, trainer, module) -> None:
        # Lightning's handler of SIGTERM is there while processes wait for one another to begin: it would end the run
        # without a checkpoint, and it sends a message in the middle of others.
        trainer._signal_connector._sigterm_notifier_fn = module.preemption.note

    def on_train_start(self, trainer, module) -> None:
        module.preemption.watch()


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put the handlers of before back at the end, for a notebook that goes on after a run."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if _in_main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
