"""Train a student: `python train.py experiment=demo`; any key can be overridden, `-m` sweeps. See conf/train.yaml."""

import json
import sys
import time

BEGAN = time.time()

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from minillm import cli, sweeps, trials  # noqa: E402


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Compose, check, build, fit; returns the figure that a sweeper optimises. A trial of a sweep is a train.py too."""
    if trials.in_sweep():
        return trials.run_trial(cfg)
    from minillm.build import build, check_config  # a sweep's own process needs nothing of it

    settings = check_config(cfg, command=" ".join(["python", *sys.argv]), began=BEGAN)
    run = build(cfg, settings)
    run.trainer.fit(run.module, run.datamodule, ckpt_path=run.ckpt_path)
    with open(f"{cfg.run.dir}/metrics.json") as stream:
        return json.load(stream).get(cfg.optimized_metric)


if __name__ == "__main__":
    cli.run(sweeps.with_report(main), "train")
