"""A sweep as a user calls it: a trial fails, another is cut off, the same command again does what is left."""

import json
import os
import signal
import time

import pytest

from tests.commands import Command, call, grown
from tests.unit.test_secret import TOKEN


@pytest.fixture
def sweep(tmp_path, overrides):
    fixed = [each for each in overrides if not each.startswith("optim.learning_rate")]

    def run(*arguments):
        command = ["-m", *fixed, "start.steps=0", "logger=csv", "run.name=rates", *arguments]
        done = call("train.py", *command, cwd=tmp_path, COLUMNS="300")
        assert "Traceback" not in done.stderr
        return done.poll(), " ".join((done.stdout + done.stderr).split())

    return run


def test_failed_cut_off_and_finished_trials(sweep, tmp_path):
    good, bad = (tmp_path / "runs" / "rates" / f"optim.learning_rate-{rate}" for rate in ("0.002", "-1"))
    status, out = sweep("optim.learning_rate=-1,2e-3")
    assert status == 1 and "1 of 2 trials did not finish; the same command goes on" in out
    assert "optim.learning_rate--1: failed. Error: 2 problems in the configuration" in out
    assert "wanted a number above 0" in (bad / "error.txt").read_text() and not (bad / "config.yaml").exists()
    figures, rows = json.loads((good / "metrics.json").read_text()), (good / "metrics.csv").read_text()
    assert f"Best val/reverse_kl: {figures['val/reverse_kl']:.4g}, runs/rates/optim.learning_rate-0.002" in out

    # As after kill -9 behind the last checkpoint. With more values, in processes of joblib's.
    (good / "metrics.json").unlink()
    status, out = sweep("optim.learning_rate=2e-3,-2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert status == 1 and "1 of 2 trials did not finish" in out and "optim.learning_rate--2: failed" in out
    again = json.loads((good / "metrics.json").read_text())
    assert (good / "metrics.csv").read_text() == rows  # it went on, and there was nothing left to train
    assert again | {"wall_seconds": 0} == figures | {"wall_seconds": 0}

    # What is finished is skipped, and returns its figure, here to optuna.
    kept = (good / "metrics.json").stat().st_mtime_ns
    grid = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"]
    status, out = sweep("optim.learning_rate=choice(2e-3)", *grid)
    assert status == 0 and "optim.learning_rate-0.002: finished before; skipped" in out
    assert (good / "metrics.json").stat().st_mtime_ns == kept
    results = (tmp_path / "runs" / "rates" / "optimization_results.yaml").read_text()
    assert f"best_value: {figures['val/reverse_kl']}" in results


def test_a_secret_is_nowhere_on_the_disk(sweep, tmp_path):
    status, out = sweep("optim.learning_rate=1e-3,2e-3", f"data.system={TOKEN}")
    assert status == 1 and "data.system: holds what looks like a token or password" in out and TOKEN not in out
    texts = [file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(TOKEN in text for text in texts) and not list(tmp_path.rglob(f"*{TOKEN}*"))


@pytest.mark.parametrize("wrong", ["optim.learning_rat=1,2", "sampler=teacher_mixed,nothing"])
def test_a_refused_sweep_leaves_no_directory(sweep, tmp_path, wrong):
    status, out = sweep(wrong)
    assert status == 1 and wrong.split("=")[0] in out and not list(tmp_path.iterdir())


def test_ctrl_c_in_a_terminal_saves_the_trial_and_ends_the_sweep(tmp_path, overrides):
    """It goes to the sweep and to its trial; the second trial is not begun."""
    swept = ["optim.learning_rate=1e-3,2e-3", "regime.max_steps=4000", "callbacks.checkpoints.every=null"]
    sweep = Command("train.py", "-m", *overrides, *swept, "logger=csv", "run.name=rates", cwd=tmp_path)
    first, second = (tmp_path / "runs" / "rates" / f"optim.learning_rate-{rate}" for rate in ("0.001", "0.002"))
    while not grown(first / "metrics.csv", 1500):
        assert sweep.poll() is None, sweep.stderr
        time.sleep(0.01)
    os.killpg(sweep.pid, signal.SIGINT)
    assert sweep.wait() == 75
    said = sweep.stderr
    assert "interrupted by SIGINT; the same command goes on" in said
    assert "Traceback" not in said and "Traceback" not in (first / "train.log").read_text()
    assert (first / "checkpoints" / "last.ckpt").exists() and not (second / "config.yaml").exists()
