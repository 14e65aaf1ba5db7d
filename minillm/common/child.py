"""Python commands of ours as child processes: signals reach them, and we wait until they have saved."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from math import inf
from pathlib import Path

ROOT = Path(__file__).parents[2]  # where train.py and conf/ are
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent() -> None:
    """Let the system kill this process (SIGKILL) when the one that started it ends, however it ends; on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def importable() -> None:
    """Let processes that this one starts find the package wherever they begin."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


class Children:
    """Processes at work, by name, each in a session of its own: the terminal's Ctrl-C reaches it through us alone.

    Within this context a signal is noted in `signal` and goes on to all; a second Ctrl-C kills them and ends us. An
    error that leaves the context asks them to save. Its end waits for all of them.
    """

    def __init__(self):
        self.running: dict[str, subprocess.Popen] = {}
        self.began: dict[str, float] = {}
        self.signal: str | None = None

    def start(self, name: str, command: Sequence[str], log: Path | None = None, **options) -> None:
        """`command` follows the interpreter; its output is added to `log`; `options` are those of Popen."""
        importable()
        self.began[name] = time.monotonic()
        with open(log, "ab") if log else nullcontext() as stream:
            whole = [sys.executable, *command]
            self.running[name] = subprocess.Popen(
                whole, stdout=stream, stderr=stream, start_new_session=True, **options
            )
        if self.signal:  # it came while the command began
            self.running[name].terminate()

    def next_ended(self, patience: float = inf) -> tuple[str, int] | None:
        """Wait for one, but not longer than `patience` seconds; its name and status, below 0 if a signal killed it."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            for name, process in self.running.items():
                if process.poll() is not None:
                    del self.running[name]
                    return name, process.returncode
            time.sleep(0.05)
        return None

    def send(self, number: int) -> None:
        for process in self.running.values():
            process.send_signal(number)

    def __enter__(self) -> Children:
        main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
        # Under nohup SIGHUP is ignored, and stays so.
        heard = [each for each in _SIGNALS if main and signal.getsignal(each) != signal.SIG_IGN]
        self._before = {each: signal.signal(each, self._forward) for each in heard}
        return self

    def __exit__(self, kind, *_) -> None:
        if not self.signal:  # else they know
            self.send(signal.SIGTERM)
        for process in self.running.values():
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.signal is not None:
            self.send(signal.SIGKILL)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if number == signal.SIGINT:
            os.write(2, b"Interrupted; waiting until all is saved, Ctrl-C again ends it at once\n")
        self.signal = self.signal or signal.Signals(number).name
        self.send(number)
