"""python -m minillm.plan recipe=minillm pair=gpt2_120m devices=64 device_memory=80: what a run would need.

No GPU, no hub and no weights: shapes are those of the models' yaml. See conf/plan.yaml and docs/planning.md.
"""

import hydra
from omegaconf import DictConfig

from minillm.common import cli


@hydra.main(config_path="../conf", config_name="plan", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    from minillm.experiments.planned import check_plan, plan_and_show

    question = check_plan(cfg)
    cli.prepare()
    plan_and_show(question)


if __name__ == "__main__":
    cli.run(main, "plan")
