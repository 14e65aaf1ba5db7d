"""A peer's own pinned environment, made once by the benchmark that needs it, and its figures from a process in it."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


# What `minillm.common.machine.keep_freed_memory` sets, for a process that does not call it.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**28),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def run(version: str, script: str, *arguments: str, keep_freed_memory: bool = False) -> dict:
    """The JSON that `script` prints last, run in the environment of requirements-trl-<version>.txt."""
    command = [_python(version), "-m", f"benchmarks.peers.{script}", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    environment = inherited | (ALLOCATOR if keep_freed_memory else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _python(version: str) -> str:
    requirements, folder = HERE / f"requirements-trl-{version}.txt", HERE / ".envs" / f"trl-{version}"
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"Making the environment of TRL {version} in {folder.relative_to(ROOT)} (about a minute) ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [folder / "bin" / "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", requirements], check=True, stdout=sys.stderr)
        stamp.write_text(requirements.read_text())
    return str(folder / "bin" / "python")
