"""A run's directory has one command at a time."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from minillm.common.errors import ConfigError
from minillm.train import directory
from minillm.train.directory import LOCK, run_lock


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(directory, "_PATIENCE", 0.0)


def test_a_second_command_is_refused(tmp_path, impatient):
    who = "another command is at work in .*run"
    with run_lock(tmp_path / "run"), pytest.raises(ConfigError, match=who), run_lock(tmp_path / "run"):
        pass


def test_afterwards_nothing_is_left_and_another_may_come(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), run_lock(tmp_path):
            assert (tmp_path / LOCK).exists()
            raise KeyError
        assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_no_hindrance(tmp_path, impatient):
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    with run_lock(tmp_path):
        pass


def test_a_trial_of_a_sweep_is_not_kept_out_by_its_sweep(tmp_path, impatient):
    with open(tmp_path / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with run_lock(tmp_path):
            pass


def test_without_locks_it_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_lock(tmp_path):
        pass
    assert "cannot be locked (No locks available)" in " ".join(capsys.readouterr().out.split())


def test_a_place_that_cannot_be_written_is_left_to_the_build():
    with run_lock(Path("/proc/runs/x")):
        pass
