"""Commands as processes that a test watches and signals.

They are forks of a server that has imported the libraries and computed nothing (a fork of a process whose threads
compute may hang). So a start takes 0.1 s of CPU and not 7.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
_COMMANDS = ["minillm.train.fit", "minillm.evaluation.suite.run", "minillm.evaluation.report", "minillm.generate"]
SERVER.set_forkserver_preload(["tests.parity.worker", "minillm.serve", *_COMMANDS])


def _become(script: str, arguments: list[str], place: str, variables: dict[str, str], files: list[str]) -> None:
    os.setsid()  # as a terminal's
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(place)
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = [script, *arguments]
    sys.orig_argv = [sys.executable, *([] if script.endswith(".py") else ["-m"]), *sys.argv]  # ranks begin with it
    atexit._clear()  # what the server has registered
    try:
        if script.endswith(".py"):
            sys.path[0] = str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves by os._exit


class Command:
    """A script of the repository, or a module, at work in the directory `cwd`; one thread unless told otherwise."""

    def __init__(self, script, *arguments, cwd, **variables):
        self._files = [tempfile.mkstemp(prefix="command-")[1] for _ in range(2)]
        script = str(ROOT / script) if str(script).endswith(".py") else script
        variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | variables
        given = (script, [str(each) for each in arguments], str(cwd), variables, self._files)
        self._process = SERVER.Process(target=_become, args=given, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """How it ended, as of subprocess.Popen."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(self.stderr)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    stdout = property(lambda self: Path(self._files[0]).read_text())
    stderr = property(lambda self: Path(self._files[1]).read_text())


def call(script, *arguments, cwd, **variables) -> Command:
    """The same once it has ended."""
    command = Command(script, *arguments, cwd=cwd, **variables)
    command.wait()
    return command


def start(place, options, *more) -> Command:
    """train.py; its run is runs/cut/ in the directory `place`."""
    return Command("train.py", *options, "logger=csv", "run.name=cut", *more, cwd=place)


def grown(file: Path, size: int) -> bool:
    """Is it there and larger?"""
    return file.exists() and file.stat().st_size > size
