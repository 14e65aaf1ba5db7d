"""The command with several devices: it starts its processes, passes signals on, survives the death of one of them."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.commands import start
from tests.integration.test_resume import rows

LONG = ["regime.max_steps=80", "callbacks.validation.every=20", "preflight=false"]


def finished(place, options):
    process = start(place, options)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return place / "runs" / "cut"


def under_way(place, options):
    """A run that has written a checkpoint and goes on."""
    began, folder = time.time(), place / "runs" / "cut"
    process, last = start(place, options), folder / "checkpoints" / "last.ckpt"
    while not last.exists() or last.stat().st_mtime < began:
        assert process.poll() is None, process.stderr.read()
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
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and said.count("prompts is left") == 1 and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_preempted_and_killed_and_go_on_bit_for_bit(tmp_path, overrides, strategy):
    options = [*overrides, *LONG, f"strategy={strategy}", "strategy.devices=2", "resume=auto"]
    (tmp_path / "a").mkdir()
    whole = finished(tmp_path / "a", options)
    place = tmp_path / "b"
    place.mkdir()
    process, folder = under_way(place, options)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75 and "interrupted by SIGUSR1" in said and not (folder / "metrics.json").exists()
    process, _ = under_way(place, options)
    psutil.Process(process.pid).children()[-1].kill()
    process.communicate(timeout=300)
    assert process.returncode == 1
    equal(finished(place, options), whole)
