"""Killed with SIGKILL at any moment, resumed: losses, samples, weights and the student equal an uninterrupted run's."""

import os
import random
import signal
import time

import pytest
import torch

import minillm.common.files
import minillm.common.saved
import minillm.train.callbacks.checkpoint
import minillm.train.loggers
from minillm.common.saved import damage
from minillm.train.callbacks import Validation
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.optim import Optim
from minillm.train.supervised import SupervisedDistillation
from tests.commands import SERVER, grown, start
from tests.integration.test_resume import rows, train


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, nth):
    """The process dies when `owner.name` is called for the nth time."""
    real, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            die()
        return real(*args, **kwargs)

    setattr(owner, name, counted)


def in_writing(nth, share):
    """Dies with a share of the nth checkpoint file written."""
    real, calls = torch.save, []

    def half(content, stream):
        calls.append(1)
        real(content, stream)
        if len(calls) == nth:
            stream.flush()
            os.ftruncate(stream.fileno(), int(share * stream.tell()))
            die()

    torch.save = half


MOMENTS = {
    "validation, raw": lambda: before(OnPolicyDistillation, "interrupt", 3),
    "rollout of the start": lambda: before(OnPolicyDistillation, "_start_round", 1),
    "update of the start": lambda: before(Optim, "step", 2),
    "rollout": lambda: before(OnPolicyDistillation, "interrupt", 36),
    "first update of a round": lambda: before(Optim, "step", 5),
    "second update of a round": lambda: before(Optim, "step", 6),
    "validation": lambda: before(Validation, "measure", 4),
    "samples": lambda: before(Validation, "_write", 4),
    "start.ckpt half written": lambda: in_writing(1, 0.5),
    "best.ckpt written": lambda: in_writing(4, 0.5),
    "last.ckpt begun": lambda: in_writing(5, 0.0),
    "last.ckpt half written": lambda: in_writing(5, 0.5),
    "last.ckpt written, not in place": lambda: in_writing(5, 1.0),
    "the one before it kept": lambda: before(minillm.train.callbacks.checkpoint, "put_in_place", 4),
    "row of a validation": lambda: before(minillm.train.loggers.MetricsCSV, "log_metrics", 5),
    "row of a rollout": lambda: before(minillm.train.loggers.MetricsCSV, "log_metrics", 6),
    "the last update": lambda: before(Optim, "step", 8),
    "the student's files": lambda: before(minillm.train.callbacks.record, "export_student", 1),
    "metrics.json": lambda: before(minillm.train.callbacks.record, "write_whole", 1),
}


SUPERVISED_MOMENTS = MOMENTS | {
    "second micro-batch": lambda: before(SupervisedDistillation, "training_step", 6),
    "update": lambda: before(Optim, "clip", 4),
    "second row": lambda: before(minillm.train.loggers.MetricsCSV, "log_metrics", 2),
}


def run(moment, run_dir, overrides, resume):
    SUPERVISED_MOMENTS[moment]()
    train(run_dir, overrides, resume=resume)


def killed(moment, run_dir, overrides, resume=None):
    """The run in a process of its own that dies at the moment; whether it died of it."""
    child = SERVER.Process(target=run, args=(moment, run_dir, overrides, resume))
    child.start()
    child.join(timeout=120)
    assert child.exitcode is not None, child.kill()
    return child.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def options(overrides):
    """Each validation finds a better student, so that best.ckpt is written as often as last.ckpt."""
    return [*overrides, "callbacks.checkpoints.monitor=loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, options):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, options)
    return folder


def same(cut, whole):
    assert rows(cut) == rows(whole)
    weights = "student/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    states = [torch.load(each / "checkpoints/last.ckpt", weights_only=True) for each in (cut, whole)]
    mine, theirs = (state["state_dict"] for state in states)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items()) and states[0]["minillm"]["step"] == 6
    names = {file.name for file in (whole / "samples").iterdir()}
    assert names == {file.name for file in (cut / "samples").iterdir() if not file.name.startswith(".")}
    for name in names:
        assert (cut / "samples" / name).read_text() == (whole / "samples" / name).read_text(), name


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_once(tmp_path, options, whole, moment):
    assert killed(moment, tmp_path, options)
    assert not (tmp_path / "metrics.json").exists()
    assert not [file for file in (tmp_path / "checkpoints").glob("*.ckpt") if damage(file)]
    train(tmp_path, options, resume="auto")
    same(tmp_path, whole)


def test_killed_at_one_moment_after_another(tmp_path, options, whole):
    died = [
        killed(moment, tmp_path, options, resume="auto")
        for moment in ("last.ckpt half written", "second row", "rollout", "metrics.json")
    ]
    assert died[:2] == [True, True] and died[-1]
    train(tmp_path, options, resume="auto")
    same(tmp_path, whole)


@pytest.mark.parametrize("moment", ["second micro-batch", "update", "last.ckpt half written", "row of a rollout"])
def test_the_supervised_regime_killed_once(tmp_path, supervised, moment):
    options = [*supervised, "regime.max_steps=6", "callbacks.checkpoints.monitor=loss"]
    train(tmp_path / "whole", options)
    assert killed(moment, tmp_path / "cut", options)
    train(tmp_path / "cut", options, resume="auto")
    same(tmp_path / "cut", tmp_path / "whole")


def uninterrupted(place, options):
    """By the command too, with as many threads: they decide how sums are rounded."""
    place = place / "whole"
    place.mkdir()
    done = start(place, options)
    assert done.wait(timeout=120) == 0, done.stderr
    return place / "runs" / "cut"


def test_the_command_itself_is_killed_three_times_wherever_it_is(tmp_path, options):
    """Within 0.1 s of its metrics.csv having grown; the moments are drawn, the outcome is not."""
    long = [*options, "regime.max_steps=40", "callbacks.validation.every=8"]
    whole = uninterrupted(tmp_path, long)
    draw, folder, kills = random.Random(5), tmp_path / "runs" / "cut", 0
    for _ in range(3):
        size = (folder / "metrics.csv").stat().st_size if (folder / "metrics.csv").exists() else 0
        process = start(tmp_path, long, "resume=auto")
        while process.poll() is None:
            if grown(folder / "metrics.csv", size + 1500):
                time.sleep(0.1 * draw.random())
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        assert process.wait(timeout=120) in (0, -signal.SIGKILL), process.stderr
    done = start(tmp_path, long, "resume=auto")
    assert done.wait(timeout=120) == 0, done.stderr
    assert kills >= 1 and rows(folder) == rows(whole)
    weights = "student/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_preempted_command_ends_with_75_and_the_same_command_goes_on(tmp_path, options):
    long = [*options, "regime.max_steps=100", "callbacks.validation.every=25", "resume=auto"]
    process, folder = start(tmp_path, long), tmp_path / "runs" / "cut"
    while not grown(folder / "metrics.csv", 1500):
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 75
    said = process.stderr
    assert "interrupted by SIGUSR1; the same command with resume=auto goes on" in said
    assert "Traceback" not in said and not (folder / "metrics.json").exists()
    done = start(tmp_path, long)
    assert done.wait(timeout=120) == 0 and (folder / "metrics.json").exists()
    assert rows(folder) == rows(uninterrupted(tmp_path, long))
