"""The command with several devices: it starts its processes, passes signals on, survives the death of one of them."""

import json
import signal
import time
from functools import cache
from pathlib import Path

import psutil
import pytest

from minillm.train.directory import LOCK
from tests.commands import ROOT, start
from tests.integration.test_resume import Killed, rows, train

LONG = ["regime.max_steps=40", "callbacks.validation.every=20"]


def finished(place, options):
    process = start(place, options)
    assert process.wait() == 0, process.stderr
    return place / "runs" / "cut"


def under_way(place, options):
    """A run that has written a checkpoint and goes on."""
    began, folder = time.time(), place / "runs" / "cut"
    process, last = start(place, options), folder / "checkpoints" / "last.ckpt"
    while not last.exists() or last.stat().st_mtime < began:
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    return process, folder


def equal(cut: Path, whole: Path):
    weights = "student/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    assert rows(cut) == rows(whole)


def test_the_command_starts_one_process_a_device(tmp_path, overrides):
    folder = finished(tmp_path, [*overrides, "strategy=ddp", "strategy.devices=2", "regime.max_steps=2"])
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 2


def test_a_mistake_is_said_once(tmp_path, overrides):
    """Found by both processes, once the tokenizer is there."""
    options = [*overrides, "strategy=fsdp_tp", "strategy.devices=2", "data.max_prompt_tokens=1"]
    process = start(tmp_path, options)
    said = process.wait() == 1 and process.stderr
    assert said and said.count("prompts is left") == 1 and "Traceback" not in said


def test_what_the_first_process_finds_ends_both_with_one_message(tmp_path, overrides):
    """Both checkpoints are damaged; only the first process looks."""
    folder = tmp_path / "runs" / "cut"
    with pytest.raises(Killed):
        train(folder, overrides, kill_after=3)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"no checkpoint")
    process = start(tmp_path, [*overrides, "strategy=ddp", "strategy.devices=2", "resume=auto"])
    said = process.wait() == 1 and process.stderr
    assert said and said.count("no checkpoint to go on from") == 1, said
    assert "Traceback" not in said and said.count("Error") == 1 and not (folder / LOCK).exists(), said


@pytest.mark.parametrize(
    ("strategy", "number", "to_one"),
    [("ddp", signal.SIGUSR1, True), ("fsdp", signal.SIGINT, False)],
)
def test_two_processes_are_preempted_and_killed_and_go_on_bit_for_bit(tmp_path, overrides, strategy, number, to_one):
    """A signal `to_one` rank reaches the last alone: the first, which has none of its own, names it all the same."""
    options = [*overrides, *LONG, f"strategy={strategy}", "strategy.devices=2", "resume=auto"]
    (tmp_path / "a").mkdir()
    whole = finished(tmp_path / "a", options)
    place = tmp_path / "b"
    place.mkdir()
    process, folder = under_way(place, options)
    psutil.Process(process.pid).children()[-1].send_signal(number) if to_one else process.send_signal(number)
    assert process.wait() == 75 and f"interrupted by {number.name}" in process.stderr
    assert not (folder / "metrics.json").exists()
    process, _ = under_way(place, options)
    psutil.Process(process.pid).children()[-1].kill()
    assert process.wait() == 1
    equal(finished(place, options), whole)


# Read by every Python that begins with it in its path: one rank dies of itself, at a moment of test_killed.py.
DYING = """import os
if os.environ.get("RANK") == os.environ["DYING_RANK"]:
    from tests.integration.test_killed import MOMENTS
    MOMENTS[os.environ["DYING_MOMENT"]]()
"""


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, overrides):
    """The run that nobody kills, of a strategy."""

    @cache
    def of(strategy):
        folder = tmp_path_factory.mktemp("uncut")
        return finished(folder, [*overrides, f"strategy={strategy}", "strategy.devices=2", "resume=auto"])

    return of


@pytest.mark.parametrize(
    ("strategy", "moment", "rank"),
    [
        ("ddp", "rollout", 1),
        ("ddp", "last.ckpt half written", 0),
        ("fsdp", "second update of a round", 1),
        ("fsdp", "validation", 0),
    ],
)
def test_one_of_two_processes_dies_at_any_moment(tmp_path, overrides, uncut, monkeypatch, strategy, moment, rank):
    """Each phase once, and each strategy twice."""
    options = [*overrides, f"strategy={strategy}", "strategy.devices=2", "resume=auto"]
    (tmp_path / "sitecustomize.py").write_text(DYING)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
        patch.setenv("DYING_RANK", str(rank))
        patch.setenv("DYING_MOMENT", moment)
        process = start(tmp_path, options)
        assert process.wait() == 1, process.stderr
    assert not (tmp_path / "runs" / "cut" / "metrics.json").exists()
    equal(finished(tmp_path, options), uncut(strategy))


def test_a_second_ctrl_c_ends_all_processes_without_saving(tmp_path, overrides):
    """In the middle of a round that is long: the first Ctrl-C finds no place to save."""
    round_of_a_minute = ["start.steps=0", "regime.inner_epochs=2000", "regime.max_steps=4000"]
    process = start(tmp_path, [*overrides, *round_of_a_minute, "strategy=ddp", "strategy.devices=2"])
    folder = tmp_path / "runs" / "cut"
    while not (folder / "samples" / "raw.jsonl").exists():
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    time.sleep(3)  # past the rollout, after which the first Ctrl-C would find a place to save
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    while "SIGINT: saving at the next possible place, then exit; Ctrl-C again" not in process.stderr:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=20)[1]
    assert not (folder / "checkpoints" / "last.ckpt").exists()
