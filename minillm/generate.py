"""python -m minillm.generate: a teacher answers prompts, on disk, as training data of SeqKD. See conf/generate.yaml."""

import sys
from types import ModuleType

import hydra
from omegaconf import DictConfig

from minillm.common import cli


@hydra.main(config_path="../conf", config_name="generate", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    from minillm.evaluation.generation import check_generation, generate

    work = check_generation(cfg)
    cli.prepare()
    generate(work)


class _Callable(ModuleType):
    """Python sets `minillm.generate` to this module wherever it is imported; the function must stay in reach."""

    def __call__(self, *args, **kwargs):
        from minillm.api import generate

        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    cli.run(main, "generate")
