"""What one process does for all of them, and what all must know; where there is only one these are plain calls."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from minillm.common.errors import ConfigError, MinillmError
from minillm.common.lazy import lazy

dist = lazy("torch.distributed")
Value = TypeVar("Value")
_PATIENCE = 15.0  # seconds until a file that one node wrote is seen by another


class FirstFailed(MinillmError):
    """On the other processes, where the first one raised an error; that one tells it whole."""

    def __init__(self, status: int):
        super().__init__("process 0 ended with an error; its own message says why")
        self.status = status


def agree(value: Any) -> Any:
    """Rank 0's, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def barrier() -> None:
    """Until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def on_first(work: Callable[[], Value]) -> Value:
    """What `work`, called on rank 0 only, gives; every rank calls this. The value must be one that can be pickled.

    Raises:
        FirstFailed: on the other ranks, whatever `work` raised on rank 0.
        BaseException: what `work` raises, on rank 0.
    """
    if not _several():
        return work()
    value = None
    if dist.get_rank() == 0:
        try:
            value = work()
        except BaseException as error:
            agree((None, getattr(error, "status", 1)))
            raise
    value, status = agree((value, None))
    if status is not None:
        raise FirstFailed(status)
    return value


def check_shared(folder: Path) -> None:
    """All ranks must see what rank 0 writes into `folder`, or into the one above it that is there: tried with a file.

    Raises:
        ConfigError: on every rank, with the ranks that do not see it.
    """
    if not _several():
        return

    def write() -> Path:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        file = there / f".shared-{secrets.token_hex(8)}"
        file.touch()
        return file

    file = on_first(write)
    try:
        seen = [False] * dist.get_world_size()
        dist.all_gather_object(seen, _appears(file))
    finally:
        if dist.get_rank() == 0:
            file.unlink(missing_ok=True)
    if blind := [str(rank) for rank, sees in enumerate(seen) if not sees]:
        raise ConfigError(
            f"run.dir={folder}: process {', '.join(blind)} does not see what process 0 writes to {file.parent}; wanted "
            "a directory on a file system that all nodes share"
        )


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _appears(file: Path) -> bool:
    end = time.monotonic() + _PATIENCE
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
