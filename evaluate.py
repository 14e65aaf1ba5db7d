"""Measure models: `python evaluate.py models=[DIR_OR_ID,...] teacher=DIR_OR_ID data.files=[FILE,...]`.

`suite=paper` measures all that the paper does. All keys: conf/evaluate.yaml, conf/suite/.
"""

import hydra
from omegaconf import DictConfig

from minillm import cli
from minillm.suite import evaluate


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    evaluate(cfg)


if __name__ == "__main__":
    cli.run(main, "evaluate")
