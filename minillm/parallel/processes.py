"""One process a device: joining those that were started, by us, torchrun or srun."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import timedelta
from typing import Any

import rich
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from minillm.common.child import end_with_parent
from minillm.common.ranks import in_a_worker, local_rank, rank
from minillm.parallel.start import STARTED_BY

_PATIENCE = timedelta(hours=2)  # a rank may wait for another that tokenises a corpus or reads a large model


def environment() -> ClusterEnvironment:
    """Who started the processes, for the trainer. Lightning would take any job of SLURM for one of srun's, and requeue
    it by itself."""
    if "RANK" in os.environ:
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if in_a_worker() else LightningEnvironment()


def join(*, cuda: bool, patience: timedelta = _PATIENCE) -> None:
    """Become a member of the processes that were started, with a silent terminal on all but the first. `patience`: how
    long one waits for another that lives; one that ends is noticed by who started them."""
    if dist.is_initialized():
        return
    if STARTED_BY in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # when the command or torchrun is killed nobody else ends its processes
        if os.environ.get(STARTED_BY, str(os.getppid())) != str(os.getppid()):
            os._exit(1)  # it ended before it could be followed
    device = None
    if cuda:
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=patience, device_id=device, **_rendezvous())
    if rank() > 0:
        rich.reconfigure(quiet=True)
        logging.disable(logging.WARNING)


def _rendezvous() -> dict[str, Any]:
    """torchrun's variables are torch's own; srun's are translated, by Lightning's rules for address and port."""
    if "RANK" in os.environ:
        return {}
    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    return {"rank": slurm.global_rank(), "world_size": slurm.world_size()}


def leave() -> None:
    """All together: a rank closes no group in which another still waits for a message. One that has failed has said why
    and does not come."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.barrier()
        dist.destroy_process_group()
