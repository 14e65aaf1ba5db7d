"""One rank of a list of runs: python -m tests.parity.worker JOBS, started once a process with torch's variables set.

A job has a run directory and overrides, and may copy a directory first, be cut after some rounds, or resume.
"""

import json
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from minillm.common.ranks import rank
from minillm.parallel import join, leave
from tests.integration.test_resume import Killed, train
from tests.parity.conftest import Rollouts


def main() -> None:
    join(cuda=False)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if job.get("copy") and rank() == 0:
            shutil.copytree(job["copy"], job["run_dir"])
        dist.barrier()
        run_dir, more = Path(job["run_dir"]), {key: job.get(key) for key in ("resume", "kill_after")}
        try:
            train(run_dir, job["overrides"], also=Rollouts(run_dir), **more)
        except Killed:
            assert job.get("kill_after")
    leave()


if __name__ == "__main__":
    main()
