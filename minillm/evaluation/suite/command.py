"""What evaluate.py does: check, start the processes, measure."""

from __future__ import annotations

import logging
from datetime import timedelta

from omegaconf import DictConfig, OmegaConf

from minillm import parallel
from minillm.common import cli
from minillm.common.errors import Interrupted
from minillm.common.machine import on_cuda
from minillm.common.overrides import override
from minillm.common.ranks import in_a_worker
from minillm.evaluation.suite.settings import check_suite

_PATIENCE = timedelta(days=30)  # shares are by number, and so of unequal length


def evaluate(cfg: DictConfig) -> None:
    """Measure what `cfg` describes, here or in `devices` processes.

    Raises:
        MinillmError: see `check_suite` and `run_suite`.
    """
    logging.getLogger("minillm.data.prompts").setLevel(logging.WARNING)  # what it counts is said where it matters
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if in_a_worker():
        parallel.join(cuda=on_cuda(plain["device"]), patience=_PATIENCE)
        plain = parallel.agree(plain)  # the run's name may hold the time
    suite = check_suite(plain)
    if suite.devices > 1 and not in_a_worker():
        try:
            parallel.launch(suite.devices, [override("run.name", suite.run_name)], cuda=on_cuda(suite.device.type))
        except Interrupted as error:
            raise Interrupted(error.signal, "the same command with the same run.name goes on") from error
        return
    from minillm.evaluation.suite.run import run_suite  # wrong values need not wait for it

    cli.prepare()
    run_suite(suite)
    parallel.leave()
