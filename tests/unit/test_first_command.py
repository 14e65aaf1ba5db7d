"""What a newcomer's first commands say: without the requirements, without arguments."""

import subprocess
import sys

import pytest

from minillm.common.child import ROOT


def command(*arguments, bare=True):
    """In the repository; `bare` without the installed packages, as a system Python is."""
    options = dict(cwd=ROOT, capture_output=True, text=True)
    return subprocess.run([sys.executable, *(["-S"] if bare else []), *arguments], **options)


@pytest.mark.parametrize(
    "arguments", [("train.py", "a=1"), ("evaluate.py",), ("-m", "minillm.plan"), ("-m", "examples.loop")], ids=" ".join
)
def test_a_python_without_the_requirements_says_so_in_one_line(arguments):
    done = command(*arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(f"Error: {sys.executable} (Python 3.")
    assert "has no hydra, torch, lightning, transformers: wanted" in line and "use .venv/bin/python" in line


def test_a_program_of_ones_own_gets_an_import_error():
    done = command("-c", "import minillm")
    assert "ModuleNotFoundError: " in done.stderr and "has no hydra" in done.stderr


def test_train_without_arguments_names_three_commands_and_begins_nothing():
    done = command("train.py", bare=False)
    assert done.returncode == 1 and not done.stdout
    for text in ("train.py experiment=demo", "train.py size=small model.teacher=", "train.py --help"):
        assert text in done.stderr


@pytest.mark.parametrize("name", ["loop", "narrow", "spans"])
def test_examples_name_their_arguments(name):
    done = command("-m", f"examples.{name}", bare=False)
    assert (
        done.returncode == 1 and "Traceback" not in done.stderr and f"examples{'/' * (name == 'loop')}" in done.stderr
    )
