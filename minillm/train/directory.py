"""One command at a time in a run's directory."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from minillm.common.console import say
from minillm.common.errors import ConfigError
from minillm.common.lock import locked
from minillm.parallel import on_first

LOCK = ".lock"  # not `lock`, which is a sweep's: it holds that one while its trial, a command of its own, is at work
_PATIENCE = 10.0  # seconds: the processes of a run that was killed a moment ago may still be ending
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # no locks on this file system


@contextmanager
def holding(run_dir: Path) -> Iterator[None]:
    """Rank 0 holds the run's directory meanwhile; called by all ranks. Where the file system knows no locks that is
    said, and the run goes on without.

    Raises:
        ConfigError: another command is at work there. (FirstFailed on the other ranks.)
    """
    with ExitStack() as held:
        on_first(lambda: _take(run_dir / LOCK, held))
        yield


def _take(file: Path, held: ExitStack) -> None:
    end = time.monotonic() + _PATIENCE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # refused by the build
    while True:
        try:
            with ExitStack() as attempt:
                lock = attempt.enter_context(locked(file, lambda note: _busy(file.parent, note)))
                if os.fstat(lock.fileno()).st_ino != file.stat().st_ino:
                    raise FileNotFoundError(file)
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                lock.flush()
                attempt.callback(file.unlink, missing_ok=True)
                held.enter_context(attempt.pop_all())
                return
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        except FileNotFoundError:  # its holder has removed it since we opened it
            continue
        except OSError as error:
            if error.errno in _UNKNOWN:
                say(
                    f"WARNING: {file.parent} cannot be locked ({error.strerror}); a second command with the same "
                    "run.name would not be noticed"
                )
            return  # one that cannot be written is refused by the build


def _busy(run_dir: Path, note: str) -> NoReturn:
    raise ConfigError(
        f"run.name: {note or 'another process'} is at work in {run_dir}; wait until it is done or end it, or choose "
        "another run.name"
    )
