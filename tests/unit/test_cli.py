"""A command's edge to the shell: what is said of a mistake, and what is left of a start that came to nothing."""

import logging
import sys

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from minillm import cli
from minillm.cli import CONF
from minillm.errors import ConfigError


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call `work` as the job of a command with runs/<name>/, in an empty directory; Hydra's logging is taken back."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)

    def call(work, name="it"):
        @hydra.main(config_path=str(CONF), config_name="generate", version_base="1.3")
        @cli.job
        def main(cfg):
            logging.getLogger(__name__).info("it begins")
            work(tmp_path / "runs" / name)

        monkeypatch.setattr(sys, "argv", ["generate", f"run.name={name}"])
        cli.run(main, "generate")

    yield call
    root.handlers[:] = before
    root.setLevel(level)


def mistake(folder):
    assert [file.name for file in folder.iterdir()] == ["test_cli.log"]
    raise ConfigError("x=1: wanted 2")


def test_an_error_of_ours_is_all_that_is_said_and_nothing_is_left(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        command(mistake, "a/b")
    assert caught.value.code == 1 and capsys.readouterr().err == "Error: x=1: wanted 2\n"
    assert not list(tmp_path.iterdir())


def test_what_others_made_stays(command, tmp_path):
    (tmp_path / "runs" / "a" / "other").mkdir(parents=True)
    with pytest.raises(SystemExit):
        command(mistake, "a/b")
    assert [str(each.relative_to(tmp_path)) for each in sorted(tmp_path.rglob("*"))] == [
        "runs",
        "runs/a",
        "runs/a/other",
    ]


def test_what_is_of_use_stays(command, tmp_path):
    def half_way(folder):
        (folder / "config.yaml").touch()
        raise ConfigError("too late")

    with pytest.raises(SystemExit):
        command(half_way)
    assert {file.name for file in (tmp_path / "runs" / "it").iterdir()} == {"config.yaml", "test_cli.log"}


def test_a_bug_keeps_its_traceback_and_its_name_is_free(command, tmp_path):
    with pytest.raises(ZeroDivisionError):
        command(lambda folder: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_directory_of_ones_own_outside_stays_but_for_the_runs(command, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()

    def elsewhere(folder):
        monkeypatch.chdir(tmp_path / "here")
        mistake(folder)

    with pytest.raises(SystemExit):
        command(elsewhere)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["here", "runs"]
    assert not list((tmp_path / "runs").iterdir())


def test_the_end_of_a_good_one_removes_nothing(command, tmp_path):
    command(lambda folder: None)
    assert (tmp_path / "runs" / "it" / "test_cli.log").exists()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model=smolm2", "model=smolm2: no such choice; did you mean smollm2_pruned?"),
        ("experiment=gpt2_120_sft", "experiment=gpt2_120_sft: no such choice; did you mean gpt2_120m_sft or "),
        ("sweep=alfa", "sweep=alfa: no such choice; did you mean alpha?"),
        ("checkpoint@model.teacher=gpt3", "checkpoint=gpt3: no such choice; did you mean gpt2"),
        ("lora=x", "lora=x: no such choice; choose from: default, none"),
        ("modle=own", "modle: no such key; did you mean model?"),
        ("sampler.alfa=1", "sampler.alfa: no such key; did you mean sampler.alpha?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(override, text):
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("train", [override])
    assert cli.explain(caught.value, "train").startswith(text)
