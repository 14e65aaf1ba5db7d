"""A run that a scheduler asks to stop saves and ends with status 75; resumed, it equals one that was not asked."""

import json
import os
import signal
import time
from contextlib import suppress

import lightning as L
import pytest
import torch

from minillm.common.errors import Interrupted
from minillm.rollout import decode
from minillm.train.preemption import SIGNALS
from tests.commands import start
from tests.integration.test_resume import rows, train


def kill_self(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


class At(L.Callback):
    """Sends a signal at a moment of a run."""

    def __init__(self, hook, when, number=signal.SIGTERM):
        def send(trainer, module, *args):
            if when(module):
                kill_self(number)

        setattr(self, hook, send)


def sent_in_decoding(monkeypatch, nth, number):
    """A signal during the nth call of decode, between two tokens."""
    calls, real = [], decode

    def noted(*args, interrupt=None, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            turns = []

            def send():
                turns.append(1)
                if len(turns) == 2:
                    kill_self(number)
                    kill_self(signal.SIGTERM)  # a second one changes nothing
                interrupt()

            return real(*args, interrupt=send, **kwargs)
        return real(*args, interrupt=interrupt, **kwargs)

    for module in ("rollout.decoding", "evaluation.answers"):
        monkeypatch.setattr(f"minillm.{module}.decode", noted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, overrides):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, overrides).module.state_dict()


def same(cut, whole, state):
    folder, wanted = whole
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    assert rows(cut) == rows(folder)
    best = [
        {
            key: value
            for key, value in json.loads((each / "metrics.json").read_text()).items()
            if key.startswith("best/")
        }
        for each in (cut, folder)
    ]
    assert best[0] == best[1] and best[0]
    for file in (folder / "samples").iterdir():
        assert (cut / "samples" / file.name).read_text() == file.read_text(), file.name
    assert (cut / "student" / "model.safetensors").read_bytes() == (folder / "student/model.safetensors").read_bytes()


def goes_on(cut, overrides, whole):
    assert not (cut / "metrics.json").exists() and not (cut / "student").exists()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    same(cut, whole, train(cut, overrides, resume="auto").module.state_dict())
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


# In the run of `overrides` the student's raw answers, the greedy teacher's, the answers of the supervised start, and
# then in turn a validation and a rollout, the last one a validation.
@pytest.mark.quick
@pytest.mark.parametrize(
    ("nth", "number"),
    [pytest.param(nth, SIGNALS[nth % 5], marks=[] if nth == 7 else pytest.mark.slow) for nth in range(1, 11)],
)
def test_a_signal_while_decoding(tmp_path, overrides, whole, monkeypatch, nth, number):
    sent_in_decoding(monkeypatch, nth, number)
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as caught:
        train(tmp_path, overrides)
    assert caught.value.status == 75
    monkeypatch.undo()
    goes_on(tmp_path, overrides, whole)


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_before_optimizer_step", 3),
        *(
            (hook, step)
            for hook in ("on_before_optimizer_step", "on_train_batch_end")
            for step in (0, 3, 5)
            if (hook, step) != ("on_before_optimizer_step", 3)
        ),
    ],
)
def test_a_signal_during_an_update_lets_the_round_end(tmp_path, overrides, whole, hook, step):
    """The state of its end is saved; the last round's is not taken for a finished run."""

    def when(module):
        return module.step == (step if hook == "on_before_optimizer_step" else step + step % 2)

    with pytest.raises(Interrupted):
        train(tmp_path, overrides, also=At(hook, when, signal.SIGUSR1))
    goes_on(tmp_path, overrides, whole)


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_before_optimizer_step", 3),
        ("on_train_batch_start", 0),
        ("on_train_batch_start", 2),
        ("on_train_start", 0),
        ("on_train_batch_end", 5),
    ],
)
def test_a_signal_in_the_supervised_regime(tmp_path, supervised, hook, step):
    state = train(tmp_path / "whole", supervised).module.state_dict()
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", supervised, also=At(hook, lambda module: module.step == step))
    goes_on(tmp_path / "cut", supervised, (tmp_path / "whole", state))


def test_a_sigterm_while_processes_wait_to_begin_saves_too(tmp_path, overrides, whole):
    """Behind Lightning's handler and before ours."""

    class Early(L.Callback):
        def on_fit_start(self, trainer, module):
            make = trainer.datamodule.train_dataloader

            def sent():
                kill_self(signal.SIGTERM)
                return make()

            trainer.datamodule.train_dataloader = sent

    with pytest.raises(Interrupted, match="SIGTERM"):
        train(tmp_path, overrides, also=Early())
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    goes_on(tmp_path, overrides, whole)


def test_an_interrupted_run_that_is_interrupted_again_at_once_loses_nothing(tmp_path, overrides, whole, monkeypatch):
    """The validation that is owed, and the row of the round that comes behind it, stay owed."""
    sent_in_decoding(monkeypatch, 6, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(tmp_path, overrides)
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(tmp_path, overrides, resume="auto", also=At("on_train_start", lambda module: True))
    goes_on(tmp_path, overrides, whole)


def test_a_signal_after_the_last_step_leaves_a_finished_run(tmp_path, overrides):
    process, done = start(tmp_path, overrides), tmp_path / "runs" / "cut" / "metrics.json"
    while not done.exists():
        assert process.poll() is None, process.stderr
        time.sleep(0.002)
    while process.poll() is None:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert process.poll() == 0 and (done.parent / "student" / "config.json").exists()


def test_the_end_of_the_start_is_the_best_by_its_own_figures(tmp_path, overrides):
    """The signal comes in the last step of the start, before its validation, and nothing later is better."""
    rates = ["start.learning_rate=1e-2", "optim.learning_rate=2e-2", "optim.warmup_steps=0", "regime.max_steps=2"]
    options = [*overrides, *rates]
    state = train(tmp_path / "whole", options).module.state_dict()
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["best/step"] == 0
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", options, also=At("on_before_optimizer_step", lambda module: module.start_step == 1))
    goes_on(tmp_path / "cut", options, (tmp_path / "whole", state))
