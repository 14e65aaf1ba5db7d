"""Runs whose teacher is served: the numbers of a teacher in process, also after its server has died."""

import re
import signal
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError, Interrupted, Unanswered
from minillm.models.served import ServedTeacher
from minillm.parallel import free_port
from minillm.train.callbacks.validation import Validation
from tests.commands import Command, start
from tests.integration.test_resume import rows, train
from tests.serving import serving

ON_POLICY = ["sampler.alpha=0", "start.responses=reference", "regulariser.kd_ratio=0.5"]
KD = ["objective=kd", "callbacks.validation.every=null"]


@pytest.fixture
def network(world):
    return AutoModelForCausalLM.from_pretrained(world / "teacher")


@pytest.fixture
def options(world, overrides, supervised):
    """By kind, the run without a teacher."""
    found = {"kd": [*supervised, *KD], "on_policy": [*overrides, *ON_POLICY]}
    models = ["model=own", f"model.student.source={world}/student", "model.teacher.patience=1"]
    given = ("model.student=", "model.teacher=")
    return {kind: [*models, *(key for key in keys if not key.startswith(given))] for kind, keys in found.items()}


@pytest.fixture
def cut(monkeypatch, tmp_path, network):
    """A run whose server dies before the nth question for states, in tmp_path/cut."""

    def run(options, nth):
        real, asked = ServedTeacher.states, []

        def states(*arguments):
            asked.append(1)
            if len(asked) == nth:
                stop()
            return real(*arguments)

        monkeypatch.setattr(ServedTeacher, "states", states)
        with serving(network) as (url, stop), pytest.raises(Interrupted, match="the teacher's server http"):
            train(tmp_path / "cut", [*options, f"model.teacher.url={url}"])

    return run


CASES = [*(("on_policy", n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14)), *(("kd", n) for n in (1, 2, 3, 4, 5, 6))]


@pytest.mark.parametrize(("kind", "nth"), CASES)
def test_it_equals_a_run_with_the_teacher_here(world, tmp_path, network, options, cut, kind, nth):
    """In scoring, in an update (by the regulariser), in validation, in the middle of an accumulated step."""
    whole = train(tmp_path / "whole", [*options[kind], f"model.teacher.source={world}/teacher"])
    cut(options[kind], nth)
    with serving(network) as (url, _):  # at another port
        resumed = train(tmp_path / "cut", [*options[kind], f"model.teacher.url={url}"], resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_validation_without_an_answer_ends_the_run_too(world, tmp_path, network, options, monkeypatch):
    """The last one, behind which nothing else asks."""
    whole = train(tmp_path / "whole", [*options["on_policy"], f"model.teacher.source={world}/teacher"])
    measure, at_work = Validation.measure, []

    def watched(self, trainer, module, stage):
        at_work.append(stage)
        measure(self, trainer, module, stage)
        at_work.pop()

    def states(*arguments):
        if at_work == ["step 6"]:
            raise Unanswered("the teacher's server is away")
        return real(*arguments)

    real = ServedTeacher.states
    with serving(network) as (url, _):
        run = [tmp_path / "cut", [*options["on_policy"], f"model.teacher.url={url}"]]
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="the teacher's server is away"):
            patch.setattr(Validation, "measure", watched)
            patch.setattr(ServedTeacher, "states", states)
            train(*run)
        train(*run, resume="auto")
    for name in ("metrics.json", "student/model.safetensors"):
        assert (tmp_path / "cut" / name).exists()
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") and whole.module.step == 6


def test_a_run_does_not_go_on_with_another_teacher(tmp_path, network, options, cut):
    cut(options["on_policy"], 1)
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()
    with torch.no_grad():
        network.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    with serving(network) as (url, _), pytest.raises(ConfigError, match="model.teacher: other content than the run"):
        train(tmp_path / "cut", [*options["on_policy"], f"model.teacher.url={url}"], resume="auto")


def test_what_a_served_teacher_cannot_do_is_refused_at_once(tmp_path, options):
    mine = [*options["on_policy"], "model.teacher.url=http://localhost:1"]
    wrong = ["sampler.alpha=0.2", "start.responses=teacher", "regime.teacher_states=recompute", "strategy=fsdp"]
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, [*mine, *wrong, "strategy.devices=2"])
    assert all(f"{problem} with model.teacher.url" in str(caught.value) for problem in wrong)


def served_by_command(world, place, port=None):
    """The process, its address and its port."""
    command = Command(
        "minillm.serve", f"teacher={world}/teacher", f"port={port or free_port()}", "device=cpu", cwd=place
    )
    while not (found := re.search(r"at (http://\S+:(\d+))", command.stdout)):
        assert command.poll() is None, command.stderr
        time.sleep(0.02)
    return command, found[1], found[2]


@pytest.mark.parametrize("devices", [[], ["strategy=ddp", "strategy.devices=2"]], ids=["alone", "ddp"])
def test_a_server_in_a_process_of_its_own_is_killed(tmp_path_factory, world, options, devices, monkeypatch):
    """The run ends with status 75, then goes on by the same command to the same numbers."""
    monkeypatch.setenv("MINILLM_SERVE_TOKEN", "a password of ours")
    more = [*options["on_policy"], *devices, "regime.max_steps=20", "callbacks.validation.every=4", "resume=auto"]
    places = [tmp_path_factory.mktemp(name) for name in ("whole", "cut")]
    whole = start(places[0], [*more, f"model.teacher.source={world}/teacher"])
    assert whole.wait() == 0, whole.stderr
    server, url, port = served_by_command(world, places[1])
    run = start(places[1], [*more, f"model.teacher.url={url}"])
    while not (places[1] / "runs" / "cut" / "checkpoints" / "last.ckpt").exists():
        assert run.poll() is None, run.stderr
        time.sleep(0.01)
    server.send_signal(signal.SIGKILL)
    assert run.wait() == 75 and "interrupted by the teacher's server" in run.stderr, run.stderr
    server, *_ = served_by_command(world, places[1], port)
    again = start(places[1], [*more, f"model.teacher.url={url}"])
    assert again.wait() == 0, again.stderr
    server.send_signal(signal.SIGTERM)
    mine, theirs = (place / "runs" / "cut" / "student" / "model.safetensors" for place in places)
    assert mine.read_bytes() == theirs.read_bytes()
