"""One of the processes of a run, started by `parallel.launch`: python -m minillm.worker JOB."""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

from minillm import cli
from minillm.fit import fit


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    fit(OmegaConf.create(job["cfg"]), command=job["command"], began=job["began"])


if __name__ == "__main__":
    cli.run(main, "train")
