"""Train a student. Every key can be overridden, and `-m` sweeps; see conf/train.yaml. To begin with:

python train.py experiment=demo         # 4 minutes on 2 CPU cores, nothing to download
python train.py size=small model.teacher=DIR_OR_ID model.student=DIR_OR_ID \\
    data.train_file=prompts.jsonl data.val_file=held_out.jsonl    # a first try of your own pair
python train.py --help                  # choices of each group; docs/settings.md has every key
"""

import sys
import time

BEGAN = time.time()

import minillm  # noqa: E402, F401  # isort: skip (the first: it says what is not installed)
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
    if not sys.argv[1:]:  # the defaults alone are 5,000 steps with the paper's sizes
        sys.exit(__doc__.rstrip())
    cli.run(main, "train")
