"""One of the processes of train.py or evaluate.py, started by `parallel.launch`: python -m minillm.worker JOB."""

import json
import logging
import os
import sys
from pathlib import Path

from minillm.common import cli
from minillm.common.child import end_with_parent
from minillm.common.errors import Interrupted
from minillm.common.ranks import rank
from minillm.common.stored import composed_of
from minillm.evaluation.suite import evaluate
from minillm.parallel import FAILED, FINISHED, INTERRUPTED, note
from minillm.train.fit import fit


def main() -> None:
    cli.prepare()
    end_with_parent()  # without the command nobody waits for us, and the next one would meet us
    job = json.loads(Path(sys.argv[1]).read_text())
    if os.getppid() != job["launcher"]:
        os._exit(1)  # it ended before it could be followed
    if rank() == 0:  # as Hydra's command does, which does not run here
        log = Path(job["cfg"]["run"]["dir"]) / f"{job['task']}.log"
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(log, delay=True)]
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    cfg = composed_of(job["cfg"])
    try:
        if job["task"] == "evaluate":
            evaluate(cfg)
        else:
            fit(cfg, command=job["command"], began=job["began"])
    except Interrupted:
        note(INTERRUPTED)
        raise
    except BaseException:
        note(FAILED)
        raise
    note(FINISHED)


if __name__ == "__main__":
    cli.run(main, "train")
