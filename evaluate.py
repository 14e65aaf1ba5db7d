"""Measure models: `python evaluate.py models=[DIR_OR_ID,...] teacher=DIR_OR_ID data.files=[FILE,...]`.

All keys: conf/evaluate.yaml.
"""

import hydra
from omegaconf import DictConfig

from minillm import cli
from minillm.suite import check_suite, run_suite


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    run_suite(check_suite(cfg))


if __name__ == "__main__":
    cli.run(main, "evaluate")
