"""A mesh of many devices in one process: nothing travels, sizes are those of its rank 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from minillm.parallel.settings import Parallel
from minillm.parallel.sharding import DATA, TENSOR


@contextmanager
def fake_mesh(settings: Parallel) -> Iterator[DeviceMesh | None]:
    """The mesh that Lightning makes for `settings`, of CPUs; None where no weights are in parts."""
    if not settings.sharded:
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=settings.world_size, store=FakeStore())
    try:
        sizes = (settings.data_parallel_size, settings.tensor_parallel_size)
        yield init_device_mesh("cpu", sizes, mesh_dim_names=(DATA, TENSOR))
    finally:
        dist.destroy_process_group()
