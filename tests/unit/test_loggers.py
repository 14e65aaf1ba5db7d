"""metrics.csv grows columns and is cut back on resume; when W&B is offline."""

import csv

import pytest

from minillm.loggers import STEP, MetricsCSV, wandb_offline


def read(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_new_columns_and_resume(tmp_path):
    file = tmp_path / "metrics.csv"
    logger = MetricsCSV(file)
    logger.log_metrics({"a": 1.5}, 1)
    logger.log_metrics({"a": 2.5}, 2)
    logger.log_metrics({"b": 3.0}, 3)
    assert read(file) == [
        {STEP: "1", "a": "1.5", "b": ""}, {STEP: "2", "a": "2.5", "b": ""}, {STEP: "3", "a": "", "b": "3.0"}
    ]  # fmt: skip
    again = MetricsCSV(file)
    again.resume_at(2)
    again.log_metrics({"a": 9.0}, 3)
    assert read(file) == [{STEP: "1", "a": "1.5"}, {STEP: "2", "a": "2.5"}, {STEP: "3", "a": "9.0"}]


@pytest.mark.parametrize(
    ("mode", "key", "netrc", "offline"),
    [("online", "", "", False), ("offline", "k", "", False), ("", "k", "", False), ("", "", "machine api.wandb.ai", False), ("", "", "", True)],
)
def test_wandb_mode_wins_then_a_key_then_offline(monkeypatch, tmp_path, mode, key, netrc, offline):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    if netrc:
        (tmp_path / ".netrc").write_text(f"{netrc} login user password {'k' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert wandb_offline() is offline
