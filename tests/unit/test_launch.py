"""The processes of one command: how it ends after how they ended. Here they are small programs without torch."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conf.test_compose import CONF

PROGRAM = """
import os, signal, sys, time
from minillm.common import cli
from minillm.common.errors import Interrupted
rank = os.environ.get("RANK")
if rank is None:
    from minillm.parallel import launch
    cli.run(lambda: launch(2, ["own=1"], cuda=False), "train")
    sys.exit(0)
assert sys.argv[-1] == "own=1" and os.environ["WORLD_SIZE"] == "2"
def saved(number, frame):
    os._exit(75)
{worker}
"""
WAITS = "open(f'ready{rank}', 'w').close(); time.sleep(60)"
SAVES = f"signal.signal(signal.SIGTERM, saved); {WAITS}"


def command(tmp_path, worker, number=None):
    (tmp_path / "program.py").write_text(PROGRAM.replace("{worker}", worker))
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(CONF.parent)},
    )  # fmt: skip
    while number and not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        assert process.poll() is None
        time.sleep(0.02)
    if number:
        process.send_signal(number)
    return process.communicate(timeout=60)[1], process.returncode


@pytest.mark.parametrize(
    ("worker", "number", "status", "said"),
    [
        ("os._exit(75 if rank == '0' else 0)", None, 1, ""),  # one of them has not saved
        # These two wait for 3 s.
        pytest.param("sys.exit('bad' if rank == '0' else time.sleep(60))", None, 1, "bad\n", marks=pytest.mark.slow),
        (SAVES, signal.SIGTERM, 75, ""),
        (SAVES.replace("saved", "lambda *_: os._exit(0)"), signal.SIGTERM, 0, ""),  # while it exported
        (WAITS, signal.SIGTERM, 75, "interrupted by SIGTERM; the same command with resume=auto goes on\n"),
        pytest.param(
            f"os.kill(os.getpid(), 9) if rank == '1' else {WAITS}",
            None,
            1,
            "rank 1: killed from outside",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_command_ends_as_its_processes_did(tmp_path, worker, number, status, said):
    text, code = command(tmp_path, worker, number)
    assert code == status and text.startswith(said) and bool(text) == bool(said), text


@pytest.mark.slow
def test_nohup_is_respected(tmp_path):
    text, code = command(tmp_path, f"signal.signal(signal.SIGHUP, signal.SIG_DFL); {WAITS}", signal.SIGHUP)
    assert code == 75 and "SIGHUP" in text
