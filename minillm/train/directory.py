"""A run's directory: one command at a time works in it, and checkpoints are written straight to the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from minillm.common.console import say
from minillm.common.errors import ConfigError
from minillm.common.files import locked
from minillm.common.saved import load_saved
from minillm.parallel import on_first

LOCK = ".lock"  # not `lock`, which is a sweep's: it holds that one while its trial, a command of its own, is at work
_PATIENCE = 10.0  # seconds: the processes of a run that was killed a moment ago may still be ending


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Rank 0 holds the run's directory meanwhile; called by all ranks. Where the file system has no locks a warning is
    printed, and the run goes on without.

    Raises:
        ConfigError: another command is at work there. (FirstFailed on the other ranks.)
    """
    with ExitStack() as held:
        on_first(lambda: _take(run_dir / LOCK, held))
        yield


def _take(file: Path, held: ExitStack) -> None:
    def busy(file: Path) -> None:
        raise ConfigError(
            f"run.name: another command is at work in {file.parent}; wait until it is done or end it, or choose "
            "another run.name"
        )

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(file, busy, _PATIENCE))
        held.callback(file.unlink, missing_ok=True)
    except (OSError, NotImplementedError) as error:
        if os.access(file.parent, os.W_OK):  # else the build refuses it
            why = getattr(error, "strerror", None) or error
            say(f"WARNING: {file.parent} cannot be locked ({why}); a second command there would not be noticed")


class CheckpointFile(TorchCheckpointIO):
    """Lightning's own goes by a copy in memory and one in /tmp, and reads with the default of torch.load."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        """Raises OSError: it cannot be written; what was written is removed."""
        try:
            with open(path, "wb") as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            Path(path).unlink(missing_ok=True)
            raise _disk_error(error) from error

    def load_checkpoint(self, path, map_location=None, weights_only=True) -> dict:
        return load_saved(path, mapped=False)


def _disk_error(error: BaseException) -> BaseException:
    """torch's writer, when it closes, hides what the disk said behind a RuntimeError of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return error if cause is None else OSError(cause.errno, os.strerror(cause.errno or 0))
