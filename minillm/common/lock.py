"""One process at a time in a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from minillm.common.errors import ConfigError


@contextmanager
def locked(file: Path, busy: Callable[[str], None], patience: float = 0.0) -> Iterator[TextIO]:
    """Hold the lock on `file`, open for a note to whoever comes next. The kernel frees it when the last process that
    has the descriptor ends, so a child that was given it keeps the lock beyond our own end. (`filelock` unlocks for all
    of them, and has no note.)

    busy: called with the holder's note where another process has the lock for `patience` seconds; we wait on unless
    this raises.

    Raises:
        ConfigError: `file` is a symbolic link. What it points to is not touched.
    """
    end, told = time.monotonic() + patience, False
    while True:
        with _opened(file) as lock:
            if _taken(lock, file):
                yield lock
                return
            if not told and time.monotonic() >= end:
                told = True
                lock.seek(0)
                busy(lock.read().strip())
        time.sleep(0.05)


def _opened(file: Path) -> TextIO:
    try:
        handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(f"{file}: is a symbolic link; wanted a file of its own. Delete the link") from None
        raise
    return open(handle, "a+", encoding="utf-8")


def _taken(lock: TextIO, file: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(file))
    except (BlockingIOError, FileNotFoundError):  # whoever had it has removed it
        return False
