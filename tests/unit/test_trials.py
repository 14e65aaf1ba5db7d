"""Names, tags and commands of trials; what a sweep finds in a trial's directory before it begins."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from minillm.common.changes import flat
from minillm.common.console import say
from minillm.common.stored import resolved
from minillm.common.wandb import wandb_logger
from minillm.experiments import sweep
from minillm.experiments.sweep import command_of, error_in, tag, trial_name
from tests.conf.test_compose import CONF


def test_a_name_is_safe_and_belongs_to_its_overrides():
    assert trial_name("objective.gamma-0.9+seed-1", 4) == "objective.gamma-0.9+seed-1"
    assert trial_name("", 4) == "4"
    lists = [trial_name(f"optim.betas-[0.9,{beta}]", 0) for beta in (0.95, 0.99)]
    assert len(set(lists)) == 2 and all(not set("=,[](){} /") & set(name) for name in lists)
    long = [trial_name("x" * 300 + str(number), 0) for number in range(2)]
    assert len(set(long)) == 2 and max(map(len, long)) <= 120


def test_a_tag_has_at_most_64_characters():
    assert tag("sampler.alpha=0.1") == "sampler.alpha=0.1"
    assert tag("a=" + "b" * 100) == "a=" + "b" * 62
    assert tag("a=${b}'\"") == "a=_{b}__"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("step 1\nError: 2 problems:\n  - a\n  - b\n", "Error: 2 problems:\n  - a\n  - b"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("", "There is no output"),
    ],
)
def test_what_a_failed_run_said(output, text):
    assert error_in(output) == text


@pytest.fixture
def job(tmp_path):
    """A job of a sweep as Hydra composes it, and its plain config."""
    before = HydraConfig.instance().cfg

    def make(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*overrides, "run.name=alpha"], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.job.num = 1
            cfg.hydra.runtime.output_dir = str(tmp_path / "alpha" / "sampler.alpha-0.1")
            cfg.hydra.runtime.choices["hydra/launcher"] = "basic"
            cfg.hydra.sweep.dir = str(tmp_path / "alpha")
        HydraConfig.instance().set_config(cfg)
        own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        return own, resolved(own)

    yield make
    HydraConfig.instance().cfg = before


def composed_by(command):
    overrides = [word for word in command[1:] if not word.startswith("hydra.")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=False)


def test_a_trial_is_a_run_of_wandb_in_the_group_of_its_sweep(job, tmp_path, monkeypatch):
    """The command is composed again, as its train.py does, and the logger made from it."""
    overrides = ["sampler.alpha=0.1", "objective.long_part=true", "experiment=demo"]
    _, plain = job(*overrides, "+data.template_arguments.a='x, y'", "logger.tags=[mine]")
    command = command_of(plain, tmp_path / "alpha" / "sampler.alpha-0.1")
    assert command[0].endswith("train.py") and f"hydra.run.dir='{tmp_path}/alpha/sampler.alpha-0.1'" in command
    cfg = composed_by(command)
    assert cfg.run.name == "alpha/sampler.alpha-0.1" and cfg.resume == "auto" and cfg.sampler.alpha == 0.1
    assert cfg.data.template_arguments.a == "x, y"

    seen = {}

    class Logger:
        version, experiment = "x", type("Run", (), {"define_metric": lambda *args, **kwargs: None})()

        def __init__(self, **kwargs):
            seen.update(kwargs)

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Logger)
    node = OmegaConf.to_container(cfg.logger)
    node.pop("_target_")
    wandb_logger(run_dir=tmp_path, name=cfg.run.name, settings={}, **node)
    assert seen["group"] == "alpha" and seen["name"] == "alpha/sampler.alpha-0.1"
    assert seen["tags"] == ["mine", *overrides, "+data.template_arguments.a=_x, y_"]


def test_without_wandb_the_command_has_nothing_of_it(job, tmp_path):
    _, plain = job("sampler.alpha=0.1", "logger=csv")
    assert composed_by(command_of(plain, tmp_path / "x")).logger == {"_target_": None}


def test_a_trial_whose_files_cannot_be_written_fails_alone(job, tmp_path):
    cfg, _ = job("sampler.alpha=0.1")
    (tmp_path / "alpha" / "sampler.alpha-0.1" / "error.txt").mkdir(parents=True)
    assert sweep.run_trial(cfg) is None
    outcome = json.loads((tmp_path / "alpha" / ".trials" / "1.json").read_text())
    assert outcome["state"] == "failed" and outcome["text"].endswith("error.txt: Is a directory")


def leave(folder: Path, settings, figures=None):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(resolved(OmegaConf.create(settings)))))
    if figures is not None:
        (folder / "metrics.json").write_text(figures if isinstance(figures, str) else json.dumps(figures))


@pytest.mark.parametrize(
    ("change", "figures", "state", "figure", "text"),
    [
        ({}, {"val/reverse_kl": 0.5}, "finished", 0.5, ""),
        ({}, {"val/reverse_kl": float("nan")}, "finished", None, "no finite val/reverse_kl in metrics.json"),
        ({"run": {"name": "other"}, "resume": "auto"}, {"val/reverse_kl": 0.5}, "finished", 0.5, ""),
        ({"seed": 7}, {"val/reverse_kl": 0.5}, "refused", None, "other settings: seed was 7, is 0 now"),
        ({"seed": 7}, None, "refused", None, "Delete it or choose another run.name"),
        ({}, "{", "refused", None, "metrics.json: damaged ("),
    ],
)
def test_what_is_there_is_skipped_or_refused(job, tmp_path, monkeypatch, change, figures, state, figure, text):
    own, plain = job("sampler.alpha=0.1")
    folder = tmp_path / "alpha" / "sampler.alpha-0.1"
    leave(folder, OmegaConf.merge(own, change), figures)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(sweep, "command_of", None)  # nothing is begun
    assert sweep.run_trial(own) == figure
    outcome = json.loads((tmp_path / "alpha" / ".trials" / "1.json").read_text())
    assert outcome["state"] == state and text in outcome["text"]
    assert before.items() <= {file.name: file.read_bytes() for file in folder.iterdir()}.items()
    assert flat(plain)["run.dir"] == str(folder)


SAYS_ERROR = "import sys; sys.exit(print('Error: no') or 1)"
KILLED = "import os; os.kill(os.getpid(), 9)"
TERMINATED = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"  # the sweep gets it


@pytest.mark.parametrize(
    ("code", "state", "text"),
    [
        (SAYS_ERROR, "failed", "Error: no"),
        ("raise KeyError(3)", "failed", "KeyError: 3"),
        (KILLED, "killed", "by signal 9; the same sweep goes on"),
        ("", "killed", "before its end"),  # ended well, without a result
    ],
)
def test_how_a_trial_ended(job, tmp_path, monkeypatch, code, state, text):
    own, _ = job("sampler.alpha=0.1")
    folder = tmp_path / "alpha" / "sampler.alpha-0.1"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sweep, "command_of", lambda plain, run_dir: ["-c", code])
    assert sweep.run_trial(own) is None
    outcome = json.loads((tmp_path / "alpha" / ".trials" / "1.json").read_text())
    assert outcome["state"] == state and text in outcome["text"]
    assert (folder / "error.txt").exists() is (state == "failed")


def test_a_signal_to_the_sweep_ends_its_trial_and_then_the_sweep(job, tmp_path, monkeypatch):
    own, _ = job("sampler.alpha=0.1")
    (tmp_path / "alpha" / "sampler.alpha-0.1").mkdir(parents=True)
    monkeypatch.setattr(sweep, "command_of", lambda plain, run_dir: ["-c", TERMINATED])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        sweep.run_trial(own)
    assert caught.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "alpha" / ".trials" / "1.json").read_text())["state"] == "killed"


SAVES = """
import os, signal, sys, time
def save(*_):
    time.sleep(0.3)
    open("{0}/saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)  # sent where the sweep is interrupted before it knows this process
os.kill(os.getppid(), signal.SIGINT)
time.sleep(60)
"""


def test_ctrl_c_waits_for_the_trial_to_save(job, tmp_path, monkeypatch):
    own, _ = job("sampler.alpha=0.1")
    (tmp_path / "alpha" / "sampler.alpha-0.1").mkdir(parents=True)
    command = ["-c", SAVES.format(tmp_path)]
    monkeypatch.setattr(sweep, "command_of", lambda plain, run_dir: command)
    with pytest.raises(SystemExit) as caught:
        sweep.run_trial(own)
    assert caught.value.code == 75
    assert (tmp_path / "saved").exists()


def test_a_directory_where_another_process_is_at_work_is_waited_for(job, tmp_path, capsys, monkeypatch):
    """It finishes meanwhile: then there is nothing left to do."""
    own, _ = job("sampler.alpha=0.1")
    folder = tmp_path / "alpha" / "sampler.alpha-0.1"
    leave(folder, own)
    finish = (
        f"import fcntl; f = open('{folder}/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
        f"input(); open('{folder}/metrics.json', 'w').write('{{\"val/reverse_kl\": 0.25}}')"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    with subprocess.Popen([sys.executable, "-c", finish], **pipes) as other:
        other.stdout.readline()
        monkeypatch.setattr(sweep, "say", lambda text: say(text) or ("waiting" in text and other.stdin.write("\n")))
        monkeypatch.setattr(sweep, "command_of", None)  # nothing is begun
        assert sweep.run_trial(own) == 0.25
    assert "another process is at work there" in " ".join(capsys.readouterr().out.split())
