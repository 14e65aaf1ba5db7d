"""Signals that ask a run to stop: noted by one handler, acted upon where a checkpoint can stand.

SIGTERM and SIGUSR1 are what schedulers send (SLURM's --signal, Kubernetes, spot machines), SIGUSR2 is submitit's and
SIGINT Ctrl-C, SIGHUP the end of a terminal.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minillm.common.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class Preemption:
    """Whether this process has been asked to stop. Processes of one run agree on it outside of here."""

    def __init__(self):
        self.requested: str | None = None  # the signal's name
        self.over = False  # the run has finished and is saved: a signal has nothing to stop

    def watch(self) -> None:
        """Take the signals over from whoever has them; only the main thread of a process may. SIGHUP stays ignored
        where nohup has asked for that."""
        if threading.current_thread() is threading.main_thread():
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
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """The handlers of before are put back at the end, for who goes on after a run (a notebook)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
