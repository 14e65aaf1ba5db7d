"""Measure models: `python evaluate.py models=[DIR_OR_ID,...] teacher=DIR_OR_ID data.files=[FILE,...]`.

`suite=paper` measures all that the paper does; `report=RUN_DIR` only draws what an evaluation or a training run left.
All keys: conf/evaluate.yaml, conf/suite/.
"""

from pathlib import Path

import minillm  # noqa: F401  # isort: skip (the first: it says what is not installed)
import hydra
from omegaconf import DictConfig

from minillm.common import cli
from minillm.common.errors import check
from minillm.common.ranks import rank


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    check((isinstance(cfg.wandb, bool), f"wandb={cfg.wandb}: wanted true or false"))
    from minillm.evaluation.suite import evaluate

    if cfg.report is None:
        evaluate(cfg)
    elif rank() == 0:
        cli.free(Path(cfg.run.dir), "evaluate.log")  # what Hydra made for a measurement that does not come
    if rank() == 0:
        from minillm.evaluation.report import write_report

        write_report(Path(str(cfg.report or cfg.run.dir)), wandb=cfg.wandb)


if __name__ == "__main__":
    cli.run(main, "evaluate")
