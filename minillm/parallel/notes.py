"""How far each process came, as files beside its job: after a signal torch's launcher gives us no status of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.common.errors import Interrupted
from minillm.common.ranks import rank

_FOLDER = "MINILLM_NOTES"  # the variable that names the folder to the processes
TRAINING, FINISHED, INTERRUPTED, FAILED = "training", "finished", "interrupted", "failed"


@contextmanager
def notes_in(folder: Path) -> Iterator[None]:
    """Collect the notes of the processes that this one starts within this context."""
    os.environ[_FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[_FOLDER]


def note(what: str) -> None:
    """Leave a note of this process, if the one that started it collects them."""
    if _FOLDER in os.environ:
        Path(os.environ[_FOLDER], f"{what}.{rank()}").touch()


def status_after_signal(folder: Path, n_processes: int) -> int:
    """0 where all have finished in spite of it; that of `Interrupted` where all have saved, or where nothing had begun;
    else 1: one of them says why, or was killed before it could save."""

    def count(what: str) -> int:
        return len(list(folder.glob(f"{what}.*")))

    if count(FAILED):
        return 1
    if count(FINISHED) == n_processes:
        return 0
    through = count(FINISHED) + count(INTERRUPTED) == n_processes
    return Interrupted.status if through or count(TRAINING) < n_processes else 1
