"""What one process does for all of them: the first does it, and every process learns how it went."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from minillm.common.errors import ConfigError, MinillmError

Value = TypeVar("Value")
_PATIENCE = 15.0  # seconds until a file that one node wrote is seen by another


class FirstFailed(MinillmError):
    """On the other processes, where the first one raised an error; that one tells it whole."""

    def __init__(self, status: int):
        super().__init__("the first process ended with an error, which it tells itself")
        self.status = status


def on_first(work: Callable[[], Value]) -> Value:
    """What `work` gives on rank 0, where alone it is called; every rank has to come by, and none waits in vain where it
    fails. The value must be one that can be pickled.

    Raises:
        FirstFailed: on the other ranks, whatever `work` raised on rank 0.
        BaseException: what `work` raises, on rank 0.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    value, status = None, None
    if dist.get_rank() == 0:
        try:
            value = work()
        except BaseException as error:
            dist.broadcast_object_list([None, getattr(error, "status", 1)])
            raise
    box = [value, status]
    dist.broadcast_object_list(box)
    value, status = box
    if status is not None:
        raise FirstFailed(status)
    return value


def check_shared(folder: Path) -> None:
    """All ranks must see what rank 0 writes into `folder`, or into the one above it that is there: tried with a file.

    Raises:
        ConfigError: on every rank, with the ranks that do not see it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return

    def write() -> Path:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        file = there / f".shared-{secrets.token_hex(8)}"
        file.touch()
        return file

    file = on_first(write)
    try:
        seen: list[bool] = [False] * dist.get_world_size()
        dist.all_gather_object(seen, _appears(file))
    finally:
        if dist.get_rank() == 0:
            file.unlink(missing_ok=True)
    if blind := [str(rank) for rank, sees in enumerate(seen) if not sees]:
        raise ConfigError(
            f"run.dir={folder}: process {', '.join(blind)} does not see what process 0 writes to {file.parent}; wanted "
            "a directory on a file system that all nodes share"
        )


def _appears(file: Path) -> bool:
    end = time.monotonic() + _PATIENCE
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
