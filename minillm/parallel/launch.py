"""One process a device: starting them, joining them, agreeing on a config."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import rich
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from minillm.common.child import end_with_parent, importable
from minillm.common.errors import Interrupted, MinillmError
from minillm.common.ranks import in_a_worker, rank
from minillm.parallel.notes import FAILED, notes_in, status_after_signal

_PATIENCE = timedelta(hours=2)  # a rank may wait for another that tokenises a corpus or reads a large model
_GRACE = 3600  # seconds from a signal to the end of a round, before the workers are killed


def environment() -> ClusterEnvironment:
    """Who started the processes, for the trainer. Lightning would take any job of SLURM for one of srun's, and requeue
    it by itself."""
    if "RANK" in os.environ:
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if in_a_worker() else LightningEnvironment()


def launch(devices: int, job: dict[str, Any], *, cuda: bool) -> None:
    """Run `job`, what `minillm.worker` reads, in one process a device of this node, and wait for them; they get our
    signals. At a second Ctrl-C this process ends, and they with it (`minillm.worker`). cuda: each has a GPU; else they
    share the cores.

    Raises:
        SystemExit: one of them failed.
        Interrupted: by a signal, and they have saved or had not begun.
        MinillmError: by a signal, and they had not saved when they were killed.
    """
    importable()
    if not cuda:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // devices)))
    with tempfile.TemporaryDirectory(prefix="minillm-") as folder, notes_in(Path(folder)):
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job | {"launcher": os.getpid()}))
        hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup ignores it, and so do we then
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=f"minillm-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            local_addr="localhost",
            signals_to_handle="SIGTERM,SIGQUIT,SIGUSR1,SIGUSR2" + (",SIGHUP" if hung_up else ""),
            shutdown_timeout=_GRACE,
        )
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
        before = signal.signal(signal.SIGINT, _ctrl_c)
        try:
            elastic_launch(config, sys.executable)("-m", "minillm.worker", str(file))
        except ChildFailedError as error:  # they have said why
            codes = {failure.exitcode for failure in error.failures.values()}
            sys.exit(Interrupted.status if codes == {Interrupted.status} else 1)
        except SignalException as error:
            _after_signal(error.sigval.name, Path(folder), devices)
        finally:
            signal.signal(signal.SIGINT, before)


def _after_signal(name: str, folder: Path, devices: int) -> None:
    status = status_after_signal(folder, devices)
    if status == Interrupted.status:
        raise Interrupted(name)
    if list(folder.glob(f"{FAILED}.*")):  # it has said why
        sys.exit(status)
    if status:
        raise MinillmError(
            f"{name}: processes were killed before they had saved, {_GRACE} seconds after it at the latest; the same "
            "command with resume=auto goes on from the last checkpoint"
        )


def _ctrl_c(number: int, frame) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    raise SignalException("Ctrl-C", sigval=signal.Signals(number))  # as torch's handler of the other signals


def join(*, cuda: bool, patience: timedelta = _PATIENCE) -> None:
    """Become a member of the processes that were started, with a silent terminal on all but the first. `patience`: how
    long one waits for another that lives; one that ends is noticed by who started them."""
    if dist.is_initialized():
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun: when it is killed nobody else ends its processes
    device = None
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=patience, device_id=device, **_rendezvous()
    )
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


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
