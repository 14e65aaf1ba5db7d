"""Train a student: `python train.py experiment=demo`; any key can be overridden, `-m` sweeps. See conf/train.yaml."""

import sys
import time

BEGAN = time.time()

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from minillm import cli  # noqa: E402
from minillm.fit import fit  # noqa: E402


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Make a run; returns the figure that a sweeper optimises."""
    return fit(cfg, command=" ".join(["python", *sys.argv]), began=BEGAN).get(cfg.optimized_metric)


if __name__ == "__main__":
    cli.run(main, "train")
