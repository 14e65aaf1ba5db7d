"""train.py as a process that a test watches and signals."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(place, options, *more):
    """In the directory `place`; its run is runs/cut/ there."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *options, "logger=csv", "run.name=cut", *more],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def grown(file: Path, size: int) -> bool:
    """Is it there and larger?"""
    return file.exists() and file.stat().st_size > size
