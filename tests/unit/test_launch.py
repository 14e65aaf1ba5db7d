"""How processes that got a signal end: having saved, or not."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from minillm import worker
from minillm.common.errors import ConfigError, Interrupted, MinillmError
from minillm.parallel import FAILED, FINISHED, INTERRUPTED, launch
from minillm.parallel.notes import TRAINING, notes_in, status_after_signal


@pytest.mark.parametrize(
    ("error", "noted"), [(ConfigError("disk full"), FAILED), (Interrupted("SIGTERM", "x"), INTERRUPTED)]
)
def test_a_worker_that_fails_leaves_a_note(tmp_path, monkeypatch, error, noted):
    job = {"task": "train", "cfg": {}, "command": "", "began": 0, "launcher": os.getppid()}
    (tmp_path / "job.json").write_text(json.dumps(job))
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "job.json")])
    monkeypatch.setattr(worker, "end_with_parent", Mock())  # else this very process would die with its parent
    monkeypatch.setattr(worker, "rank", lambda: 1)

    def fit(*_, **__):
        raise error

    monkeypatch.setattr(worker, "fit", fit)
    with pytest.raises(type(error)), notes_in(tmp_path):
        worker.main()
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".0"] == [f"{noted}.0"]


@pytest.mark.parametrize(
    ("notes", "status"),
    [
        ([], 75),  # models were still loading
        ([(TRAINING, 0)], 75),  # no step without the other
        ([(TRAINING, 0), (TRAINING, 1)], 1),  # killed: no note of an end
        ([(TRAINING, 0), (TRAINING, 1), (INTERRUPTED, 0)], 1),
        ([(TRAINING, 0), (TRAINING, 1), (INTERRUPTED, 0), (INTERRUPTED, 1)], 75),
        ([(TRAINING, 0), (TRAINING, 1), (FINISHED, 0), (FINISHED, 1)], 0),  # the signal came in the export
        ([(TRAINING, 0), (TRAINING, 1), (FAILED, 0), (INTERRUPTED, 1)], 1),
    ],
)
def test_the_status_after_a_signal_is_what_became_of_the_processes(tmp_path, notes, status):
    for what, rank in notes:
        (tmp_path / f"{what}.{rank}").touch()
    assert status_after_signal(tmp_path, 2) == status


@pytest.mark.parametrize(
    ("notes", "error"),
    [
        ([], Interrupted),
        ([FAILED], SystemExit),
        ([FINISHED], None),
        ([TRAINING], MinillmError),
    ],
)
def test_the_command_ends_as_its_processes_did(monkeypatch, notes, error):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "")

    def elastic_launch(config, executable):
        def run(*arguments):
            for what in notes:
                for rank in range(2):
                    Path(arguments[-1]).with_name(f"{what}.{rank}").touch()
            raise SignalException("ended", sigval=signal.SIGTERM)

        return run

    monkeypatch.setattr(sys.modules[launch.__module__], "elastic_launch", elastic_launch)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(error) if error else nullcontext() as caught:
        launch(2, {"task": "train"}, cuda=False)
    assert signal.getsignal(signal.SIGINT) == before
    if error is SystemExit:
        assert caught.value.code == 1
    if error is MinillmError:
        assert "killed before they had saved" in str(caught.value) and caught.value.status == 1


@pytest.mark.parametrize(("handler", "heard"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_nohup_is_respected(monkeypatch, handler, heard):
    """torch's launcher would end the run at the end of the terminal."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "")
    configs = []

    def elastic_launch(config, executable):
        configs.append(config)
        return lambda *arguments: None

    monkeypatch.setattr(sys.modules[launch.__module__], "elastic_launch", elastic_launch)
    before = signal.signal(signal.SIGHUP, handler)
    try:
        launch(2, {"task": "train"}, cuda=False)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("SIGHUP" in configs[0].signals_to_handle.split(",")) == heard
