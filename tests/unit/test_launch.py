"""How processes that got a signal end: having saved, or not."""

import json
import os
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from minillm import worker
from minillm.errors import ConfigError, Interrupted
from minillm.parallel import FAILED, launch


@pytest.mark.parametrize(("error", "noted"), [(ConfigError("disk full"), True), (Interrupted("SIGTERM", "x"), False)])
def test_a_worker_that_fails_leaves_a_note(tmp_path, monkeypatch, error, noted):
    job = {"task": "train", "cfg": {}, "command": "", "began": 0, "launcher": os.getppid()}
    (tmp_path / "job.json").write_text(json.dumps(job))
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "job.json")])
    monkeypatch.setattr(worker.ctypes, "CDLL", Mock())  # else this very process would die with its parent
    monkeypatch.setattr(worker, "rank", lambda: 1)

    def fit(*_, **__):
        raise error

    monkeypatch.setattr(worker, "fit", fit)
    with pytest.raises(type(error)):
        worker.main()
    assert (tmp_path / FAILED).exists() == noted


@pytest.mark.parametrize("failed", [False, True])
def test_after_a_signal_a_save_that_failed_is_no_success(monkeypatch, failed):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "")

    def elastic_launch(config, executable):
        def run(*arguments):
            if failed:
                Path(arguments[-1]).with_name(FAILED).touch()
            raise SignalException("ended", sigval=signal.SIGTERM)

        return run

    monkeypatch.setattr(sys.modules[launch.__module__], "elastic_launch", elastic_launch)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit if failed else Interrupted) as caught:
        launch(2, {"task": "train"}, cuda=False)
    assert signal.getsignal(signal.SIGINT) == before
    assert not failed or caught.value.code == 1
