"""One training run: check, and train here or in one process a device."""

from __future__ import annotations

import json
import logging
import warnings
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from minillm.common import cli
from minillm.common.errors import Interrupted
from minillm.common.machine import on_cuda
from minillm.common.overrides import override
from minillm.common.ranks import in_a_worker, rank
from minillm.common.stored import resolved
from minillm.train.settings import Settings, assemble, check_values

if TYPE_CHECKING:
    from minillm.models import Pair
    from minillm.train.build import Run


def fit(cfg: DictConfig, *, command: str, began: float) -> dict[str, float]:
    """Make the run that `cfg` describes; the figures of its metrics.json, nothing on ranks other than the first.

    Args:
        command: what the user typed, for the model card. began: seconds since the epoch.

    Raises:
        MinillmError: see `check_values`, `assemble` and `build`.
    """
    plain = resolved(cfg)
    check_values(plain, command, files=True)  # a wrong one is answered before torch is imported
    cli.prepare()
    from minillm.parallel import agree, join, launch, leave

    cuda = on_cuda(plain["trainer"].get("accelerator", "auto"))
    if in_a_worker():
        join(cuda=cuda)
        plain, command, began = agree((plain, command, began))  # a run's name may hold the time
    settings = assemble(plain, check_values(plain, command), command=command, began=began)
    if settings.strategy.world_size > 1 and not in_a_worker():
        launch(settings.strategy.devices_here, [override("run.name", plain["run"]["name"])], cuda=cuda)
    else:
        train(settings)
        leave()
    return json.loads((settings.run_dir / "metrics.json").read_text()) if rank() == 0 else {}


def train(settings: Settings, pair: Pair | None = None) -> Run:
    """Build and train in this process, `pair` or the models that the settings name.

    Raises:
        MinillmError: see `build`; Interrupted: by a signal, its state saved.
    """
    from lightning.pytorch.loggers import WandbLogger

    from minillm.parallel import barrier
    from minillm.train.build import build
    from minillm.train.directory import run_lock

    for name in ("lightning.pytorch", "lightning.fabric"):  # they turn themselves up when they are imported
        logging.getLogger(name).setLevel(logging.ERROR)
    with run_lock(settings.run_dir), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        run = build(settings, pair)
        # Before the fit: at its end Lightning puts back what was there. So they stay until the process ends, and a
        # signal after the last step does not make a finished run a failed one.
        run.module.preemption.watch()
        try:
            run.trainer.fit(run.module, run.datamodule, ckpt_path=run.ckpt_path, weights_only=True)
        except Interrupted:
            barrier()  # all end together: srun ends the others with the first one
            raise
        run.module.preemption.rest()
    for logger in run.trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
    return run
