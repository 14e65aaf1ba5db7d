"""A signal is noted once, by a handler that does nothing else; decoding is left between two tokens."""

import os
import signal
import threading

import pytest

from minillm.common.errors import Interrupted
from minillm.rollout import decode
from minillm.train.preemption import SIGNALS, Preemption
from tests.commands import call
from tests.helpers import prompt_batch


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_changes_nothing(handlers, number, capfd):
    preemption = Preemption()
    preemption.watch()
    preemption.check()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.requested == signal.Signals(number).name
    with pytest.raises(Interrupted, match=f"interrupted by {preemption.requested}; the same command with resume=auto"):
        preemption.check()
    assert capfd.readouterr().err.count("saving at the next possible place") == 1


def test_nohup_is_respected(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    preemption = Preemption()
    preemption.watch()
    os.kill(os.getpid(), signal.SIGHUP)
    preemption.check()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert preemption.requested == "SIGUSR1"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path):
    (tmp_path / "code.py").write_text("""if True:
        import os, signal
        from minillm.train.preemption import Preemption
        Preemption().watch()
        os.kill(os.getpid(), signal.SIGINT)
        print("goes on", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("not reached", flush=True)
    """)
    done = call(tmp_path / "code.py", cwd=tmp_path)
    assert done.poll() == -signal.SIGINT and done.stdout == "goes on\n"
    assert done.stderr == "SIGINT: saving at the next possible place, then exit; Ctrl-C again ends it without saving\n"


def test_another_thread_leaves_the_handlers_alone(handlers):
    thread = threading.Thread(target=Preemption().watch)
    thread.start()
    thread.join()
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_decoding_is_left_before_the_next_token(pair):
    asked = []

    def interrupt():
        asked.append(1)
        if len(asked) == 3:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        decode(
            None,
            pair.teacher,
            prompt_batch(),
            seeds=[1, 2, 3],
            alpha=1.0,
            batch_size=3,
            stop_ids=(),
            pad_id=0,
            max_new_tokens=9,
            interrupt=interrupt,
        )
    assert len(asked) == 3
