"""One process at a time in a directory."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(file: Path, busy: Callable[[str], None]) -> Iterator[TextIO]:
    """Hold the lock on `file`, open for notes to whoever comes next. It ends with the last process that holds it, so a
    child that got the descriptor keeps it beyond our own end.

    busy: called with the holder's note where another process has the lock; we wait for it unless this raises.
    """
    with open(file, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            busy(lock.read().strip())
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
