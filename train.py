"""Train a student: `python train.py experiment=demo`; any key can be overridden, `-m` sweeps. See conf/train.yaml."""

import sys
import time

BEGAN = time.time()

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from minillm.common import cli  # noqa: E402
from minillm.experiments.sweep import run_trial  # noqa: E402


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> float | None:
    """Make a run; returns the figure that a sweeper optimises. A trial of a sweep is a train.py of its own."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_trial(cfg)
    from minillm.train.fit import fit  # a sweep's own process needs nothing of it

    return fit(cfg, command=" ".join(["python", *sys.argv]), began=BEGAN).get(cfg.optimized_metric)


if __name__ == "__main__":
    cli.run(main, "train")
