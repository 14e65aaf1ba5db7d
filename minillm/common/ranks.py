"""Which of several processes this one is, by what torchrun, srun or `parallel.launch` have put into its environment."""

from __future__ import annotations

import os
import time


def started_processes() -> int:
    """Number of processes that torchrun or srun started; only srun sets the variables of a step."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", 1)))


def in_a_worker() -> bool:
    """Whether this process was started as one of several."""
    return started_processes() > 1


def rank() -> int:
    """This process's rank; 0 if it is alone."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) if in_a_worker() else 0


def local_rank() -> int:
    """Among those of this node, and so the number of its device."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))) if in_a_worker() else 0


def stand_back() -> None:
    """Wait before a failing rank reports, so that rank 0 speaks alone if it fails too."""
    if rank() > 0:
        time.sleep(5)
