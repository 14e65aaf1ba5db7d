"""One of the processes of a run, started by `parallel.launch`: python -m minillm.worker JOB."""

import json
import logging
import sys
from pathlib import Path

from omegaconf import OmegaConf

from minillm import cli
from minillm.fit import fit
from minillm.ranks import rank


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    if rank() == 0:  # as Hydra's command does, which does not run here
        log = Path(job["cfg"]["run"]["dir"]) / "train.log"
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(log, delay=True)]
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    fit(OmegaConf.create(job["cfg"]), command=job["command"], began=job["began"])


if __name__ == "__main__":
    cli.run(main, "train")
