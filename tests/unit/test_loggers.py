"""metrics.csv grows columns and is cut back on resume; when W&B is offline, and when it refuses."""

import csv

import pytest

from minillm.common.errors import ConfigError
from minillm.common.wandb import wandb_logger, wandb_offline
from minillm.train.loggers import STEP, MetricsCSV


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


def test_a_row_that_was_lost_before_the_checkpoint_costs_no_other(tmp_path):
    file = tmp_path / "metrics.csv"
    logger = MetricsCSV(file)
    for step in (1, 2, 3, 4):
        logger.log_metrics({"a": step / 2}, step)
    file.write_text(file.read_text().replace("2,1.0", "2,one"))
    MetricsCSV(file).resume_at(3)
    assert [row[STEP] for row in read(file)] == ["1", "3"]


@pytest.mark.parametrize(
    ("mode", "key", "netrc", "offline"),
    [
        ("online", "", "", False),
        ("offline", "k", "", False),
        ("", "k", "", False),
        ("", "", "machine api.wandb.ai", False),
        ("", "", "", True),
    ],
)
def test_wandb_mode_wins_then_a_key_then_offline(monkeypatch, tmp_path, mode, key, netrc, offline):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    if netrc:
        (tmp_path / ".netrc").write_text(f"{netrc} login user password {'k' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert wandb_offline() is offline


@pytest.mark.parametrize(("key", "said"), [("", "No API key configured"), ("abc", "must have 40")])
def test_what_wandb_refuses_is_told_with_the_way_out(monkeypatch, tmp_path, key, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(ConfigError, match=f"W&B gives no run .*{said}.*logger=csv does without"):
        wandb_logger(run_dir=tmp_path / "run", name="x", settings={})


def log(logger, *steps):
    for step in steps:
        logger.log_metrics({"z": 0.1 * step, "a": 1 / step} | ({"late": 7} if step >= 4 else {}), step)


@pytest.mark.parametrize("kept", [1, 3, 4, 5])
def test_a_resumed_file_equals_that_of_an_uninterrupted_run_byte_for_byte(tmp_path, kept):
    log(MetricsCSV(tmp_path / "whole.csv"), 1, 2, 3, 4, 5, 6)
    log(MetricsCSV(tmp_path / "cut.csv"), 1, 2, 3, 4, 5)
    again = MetricsCSV(tmp_path / "cut.csv")
    again.resume_at(kept)
    log(again, *range(kept + 1, 7))
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_reloading_keeps_columns_rows_and_full_precision(tmp_path):
    log(MetricsCSV(tmp_path / "m.csv"), 3, 4)
    again = MetricsCSV(tmp_path / "m.csv")
    assert again.columns == [STEP, "a", "z", "late"]
    assert [float(row["a"]) for row in again.rows] == [1 / 3, 1 / 4]
    log(again, 5)
    assert [float(row["z"]) for row in read(tmp_path / "m.csv")] == [0.1 * 3, 0.1 * 4, 0.1 * 5]


def test_known_columns_are_appended_and_only_new_ones_rewrite(tmp_path):
    logger = MetricsCSV(file := tmp_path / "m.csv")
    log(logger, 1)
    inode, start = file.stat().st_ino, file.read_bytes()
    log(logger, 2)
    assert file.stat().st_ino == inode and file.read_bytes().startswith(start)
    log(logger, 4)
    assert file.stat().st_ino != inode and read(file)[0] == {STEP: "1", "a": "1.0", "z": "0.1", "late": ""}
    assert list(tmp_path.iterdir()) == [file]


def test_beginning_anew_leaves_the_header_only(tmp_path):
    log(MetricsCSV(tmp_path / "m.csv"), 1, 2)
    MetricsCSV(tmp_path / "m.csv").resume_at(None)
    assert (tmp_path / "m.csv").read_text().split() == [STEP]


@pytest.mark.parametrize("text", ["machine github.com login user password p\n", "not a netrc file\n"])
def test_a_netrc_without_a_wandb_key_or_broken_is_offline(monkeypatch, tmp_path, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / ".netrc").write_text(text)
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_offline() is True


def test_garbage_in_the_file_costs_its_rows_only(tmp_path, capsys):
    logger = MetricsCSV(tmp_path / "metrics.csv")
    log(logger, 1, 2, 3)
    whole = (tmp_path / "metrics.csv").read_bytes().splitlines(keepends=True)
    garbage = b"\xff\x00\xfe,%s\n" % (b"9" * 200_000)
    (tmp_path / "metrics.csv").write_bytes(b"".join([*whole[:2], garbage, *whole[2:-1], whole[-1][:-2]]))
    again = MetricsCSV(tmp_path / "metrics.csv")
    assert [row[STEP] for row in again.rows] == ["1", "2"]
    assert "2 lines cannot be read and are dropped" in " ".join(capsys.readouterr().out.split())
