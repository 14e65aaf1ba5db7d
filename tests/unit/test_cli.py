"""A command's edge to the shell: what is said of a mistake, and what is left of a start that came to nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from minillm.common import cli
from minillm.common.child import ROOT
from minillm.common.cli import CONF

PROGRAM = """
import logging, os, sys
from pathlib import Path
import hydra
from minillm.common import cli
from minillm.common.errors import ConfigError

@hydra.main(config_path=sys.argv.pop(), config_name="generate", version_base="1.3")
@cli.job
def main(cfg):
    logging.getLogger("program").info("it begins")
    {body}

cli.run(main, "generate")
"""
MISTAKE = 'raise ConfigError("x=1: wanted 2")'


@pytest.fixture
def command(tmp_path):
    """Run a command with `body` as its job and the directory runs/<name>/, in `here`, in a process of its own: Hydra
    takes over the logging of the one it is in."""
    here = tmp_path / "here"
    here.mkdir()

    def call(body, name="it"):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(body=body))
        return subprocess.run(
            [sys.executable, program, f"run.name={name}", str(CONF)], cwd=here, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        )  # fmt: skip

    call.here = here
    return call


def test_an_error_of_ours_is_all_that_is_said_and_nothing_is_left(command):
    there = 'assert os.listdir("runs/a/b") == ["program.log"]; '
    done = command(there + MISTAKE, "a/b")
    assert (done.returncode, done.stderr) == (1, "Error: x=1: wanted 2\n")
    assert not list(command.here.iterdir())


def test_what_others_made_stays(command):
    (command.here / "runs" / "a" / "other").mkdir(parents=True)
    assert command(MISTAKE, "a/b").returncode == 1
    left = [str(each.relative_to(command.here)) for each in sorted(command.here.rglob("*"))]
    assert left == ["runs", "runs/a", "runs/a/other"]


def test_nothing_is_left_in_the_directory_of_another_run(command):
    there = command.here / "runs" / "it"
    there.mkdir(parents=True)
    (there / "config.yaml").touch()
    assert command("import os; os.truncate('runs/it/program.log', 0); " + MISTAKE).returncode == 1
    assert [each.name for each in there.iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_what_is_of_use_stays(command):
    assert command(f'Path("runs/it/config.yaml").touch(); {MISTAKE}').returncode == 1
    assert {file.name for file in (command.here / "runs" / "it").iterdir()} == {"config.yaml", "program.log"}


def test_a_bug_keeps_its_traceback_and_its_name_is_free(command):
    done = command("1 / 0")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr
    assert not list(command.here.iterdir())


@pytest.mark.slow
def test_the_end_of_a_good_one_removes_nothing(command):
    assert command("pass").returncode == 0
    assert (command.here / "runs" / "it" / "program.log").exists()


@pytest.mark.parametrize("name", ["chain", "generate", "evaluate", "plan", "serve"])
def test_help_shows_the_commands_own_keys_with_their_comments(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    cli.run(lambda: pytest.fail("the command has begun"), name)
    shown = capsys.readouterr().out
    assert shown.startswith("# python ") and len(shown.splitlines()) > 15 and "\nhydra:" not in shown


def test_a_reader_that_has_left_is_no_error():
    program = "from minillm.common import cli; cli.run(lambda: print('line\\n' * 100_000), 'train')"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout.readline() == b"line\n"
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 141  # as shells have it


def test_a_broken_pipe_of_something_else_is_not_taken_for_it(capsys):
    def main():
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        cli.run(main, "train")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model=smolm2", "model=smolm2: no such choice; did you mean smollm2_pruned?"),
        ("pair=gpt2_120", "pair=gpt2_120: no such choice; did you mean gpt2_120m"),
        ("sweep=alfa", "sweep=alfa: no such choice; did you mean alpha?"),
        ("checkpoint@model.teacher=gpt3", "checkpoint=gpt3: no such choice; did you mean gpt2"),
        ("lora=x", "lora=x: no such choice; choose from: default, none"),
        ("experiment=gpt2_120m_sft", "experiment=gpt2_120m_sft: is recipe=sft pair=gpt2_120m now"),
        ("experiment=opt_1b3_minillm_nopt", "experiment=opt_1b3_minillm_nopt: is recipe=minillm_nopt pair=opt_1b3 now"),
        ("modle=own", "modle: no such key; did you mean model?"),
        ("objective=gkd", "objective=gkd: no such choice; did you mean kd? all: adaptive_kl, distillm2, "),
        ("learning_rate=1", "learning_rate: no such key; did you mean optim.learning_rate or start.learning_rate?"),
        ("optim.lr=1", "optim.lr: no such key; did you mean optim.learning_rate?"),
        ("qqqq=1", "qqqq: no such key; docs/settings.md has all of them"),
        ("sampler.alfa=1", "sampler.alfa: no such key; did you mean sampler.alpha?"),
        (
            "suite.calibration.sst2.file=x",
            "suite.calibration.sst2.file: not a key of this config, but of suite=paper.",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(override, text):
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose(name := "evaluate" if override.startswith("suite") else "train", [override])
    assert cli.explain(caught.value, name).startswith(text)


LIGHT = """
import runpy, sys
for command in sys.stdin.read().splitlines():
    name, *sys.argv[1:] = command.split()
    sys.argv[0] = name
    run = runpy.run_path if name.endswith(".py") else runpy.run_module
    try:
        run(name, run_name="__main__")
    except SystemExit as error:
        print(name, error.code, {"torch", "lightning", "transformers"} & sys.modules.keys() or "light")
"""
REFUSED = {
    "train.py optim.learning_rate=-1 objective.gamma=2 sampler.alpha=7 +trainer.max_steps=3": [
        "optim.learning_rate=-1", "objective.gamma=2", "sampler.alpha=7", "use regime.max_steps",
    ],
    "evaluate.py models=[a/b] batch_size=0 data.max_prompt_tokens=0": ["batch_size=0", "data.max_prompt_tokens=0"],
    "minillm.generate teacher=a/b temperature=-1": ["temperature=-1"],
    "minillm.plan objective.gamma=2 devices=many": ["objective.gamma=2", "devices='many'"],
    "minillm.serve host=0.0.0.0 port=70000 max_tokens=9": [
        "teacher: wanted", "host=0.0.0.0: others can reach it", "port=70000", "max_tokens=9: wanted max_length=8192"
    ],
    "train.py recipe=opd model.student=a/b model.teacher.url=localhost:1": ["url='localhost:1'"],
    "minillm.export none out": ["CHECKPOINT=none: no"],
    "minillm.chain pair=gpt2_120m tests=[none.jsonl] jobs=0": ["jobs=0"],
}  # fmt: skip


def test_wrong_values_are_answered_before_torch_is_imported(tmp_path):
    """All commands in one process, which takes 2 seconds; importing torch and Lightning takes 5 more."""
    commands = "\n".join(REFUSED)
    for script in ("train.py", "evaluate.py"):
        commands = commands.replace(script, str(ROOT / script))
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], input=commands, cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert all(problem in done.stderr for problems in REFUSED.values() for problem in problems), done.stderr
    assert [line.split()[-2:] for line in done.stdout.splitlines()] == [["1", "light"]] * len(REFUSED), done.stdout
