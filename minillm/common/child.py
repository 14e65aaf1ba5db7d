"""Commands of ours as child processes: signals reach them, and we wait until they have saved."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minillm.common.console import say

ROOT = Path(__file__).parents[2]  # where train.py and conf/ are
_FORWARD = {signal.SIGTERM: signal.SIGTERM, signal.SIGUSR1: signal.SIGUSR1, signal.SIGUSR2: signal.SIGUSR1}

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent() -> None:
    """Let the system kill this process (SIGKILL) when the one that started it ends, however it ends; on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def importable() -> None:
    """Let processes that this one starts find the package wherever they begin."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@contextmanager
def forwarded(
    children: Callable[[], Sequence[subprocess.Popen]], received: list[int], names: Callable[[], str]
) -> Iterator[None]:
    """Within this context pass signals that ask a job to save on to the children that are there and note them. Ctrl-C
    goes on as SIGTERM: a terminal's reaches a child by itself, and a second one would end it without saving. `names`:
    the children's on screen."""

    def forward(number, frame) -> None:
        received.append(number)
        for child in children():
            child.send_signal(_FORWARD[signal.Signals(number)])

    on = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, forward) for each in _FORWARD} if on else {}
    try:
        yield
    except KeyboardInterrupt:
        if children():
            say(f"Interrupted; waiting for {names()} to save, Ctrl-C again ends it at once")
        for child in children():
            child.terminate()
        try:
            for child in children():
                child.wait()
        except KeyboardInterrupt:
            for child in children():
                child.kill()
                child.wait()
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
