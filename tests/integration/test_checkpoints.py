"""Checkpoints of a run: damaged, lost, of another model, on a full disk; settings that differ."""

import json
import os
import resource
import shutil
from contextlib import contextmanager

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError, ModelError, StorageError
from minillm.common.saved import load_saved
from minillm.train.callbacks import Checkpoints
from minillm.train.callbacks.boundary import find
from tests.integration.test_resume import Killed, rows, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory, overrides):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, overrides).module.state_dict()


def said(capsys, *texts):
    """The console wraps lines, also within words."""
    out = "".join(capsys.readouterr().out.split())
    assert all("".join(text.split()) in out for text in texts)


def equals(folder, run, whole):
    mine = run.module.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in whole[1].items()) and rows(folder) == rows(whole[0])
    assert (folder / "student/model.safetensors").read_bytes() == (whole[0] / "student/model.safetensors").read_bytes()


@pytest.mark.quick
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gives_the_same_run(tmp_path, overrides, whole, capsys):
    with pytest.raises(Killed):
        train(tmp_path, overrides, kill_after=3)
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert load_saved(last)["minillm"]["step"] > load_saved(previous)["minillm"]["step"]
    with open(last, "r+b") as stream:
        stream.seek(last.stat().st_size // 2)
        some = stream.read(256)  # between two records there may be some bytes of padding
        stream.seek(-len(some), os.SEEK_CUR)
        stream.write(bytes(byte ^ 64 for byte in some))
    equals(tmp_path, train(tmp_path, overrides, resume="auto"), whole)
    said(capsys, "last.ckpt is damaged", "goes on from")


class Stop(L.Callback):
    """Killed behind the saving of best.ckpt of a step, before last.ckpt."""

    def __init__(self, step):
        self.step = step

    def on_train_start(self, trainer, module):
        checkpoints, save = find(trainer, Checkpoints), Checkpoints._save

        def saved(trainer, file, **kwargs):
            if file.name == "last.ckpt" and module.step == self.step:
                raise Killed
            return save(checkpoints, trainer, file, **kwargs)

        checkpoints._save = saved


def test_best_weights_of_a_lost_branch_are_not_taken_for_those_of_the_checkpoint(tmp_path, overrides, capsys):
    options = [*overrides, "callbacks.checkpoints.monitor=loss"]  # better at each validation
    whole = tmp_path / "whole", train(tmp_path / "whole", options).module.state_dict()
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        train(cut, options, also=Stop(4))
    best, last = (load_saved(cut / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt"))
    meant = last["callbacks"]["Checkpoints"]["best"]["step"]
    assert best["minillm"]["step"] != meant
    resumed = train(cut, options, resume="auto")
    said(capsys, "the one before it is, and is back")
    equals(cut, resumed, whole)


def test_best_weights_that_are_lost_are_sought_anew(tmp_path, overrides, capsys):
    with pytest.raises(Killed):
        train(tmp_path, overrides, kill_after=2)
    for name in ("best.ckpt", "previous_best.ckpt"):
        (tmp_path / "checkpoints" / name).unlink(missing_ok=True)
    train(tmp_path, overrides, resume="auto")
    said(capsys, "are lost: the best is sought anew")
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert load_saved(tmp_path / "checkpoints/best.ckpt")["minillm"]["step"] == figures["best/step"]


@contextmanager
def full_disk(size=20_000):
    """No file grows beyond `size`: metrics and samples fit, checkpoints do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullFrom(L.Callback):
    """The disk is full from one round to another."""

    def __init__(self, first, last):
        self.first, self.last, self.disk = first, last, None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.round == self.first:
            self.fill()
        elif module.round == self.last and self.disk:
            self.free()

    def on_exception(self, trainer, module, exception):
        self.free()

    def fill(self):
        self.disk = full_disk()
        self.disk.__enter__()

    def free(self):
        if self.disk:
            self.disk.__exit__(None, None, None)
            self.disk = None


def test_a_full_disk_ends_the_run_and_nothing_is_lost(tmp_path, overrides, whole):
    with pytest.raises(StorageError, match="cannot be written .*; .* is as it was. Make room"):
        train(tmp_path, overrides, also=FullFrom(2, 99))
    assert not (tmp_path / "metrics.json").exists() and not list((tmp_path / "checkpoints").glob(".*"))
    assert load_saved(tmp_path / "checkpoints" / "last.ckpt")["minillm"]["round"] == 2
    equals(tmp_path, train(tmp_path, overrides, resume="auto"), whole)


def test_a_disk_that_is_full_for_the_student_alone(tmp_path, overrides, whole):
    disk = FullFrom(-1, -1)
    disk.on_train_end = lambda trainer, module: disk.fill()
    with pytest.raises(StorageError, match="student cannot be written .*; last.ckpt is there"):
        train(tmp_path, overrides, also=disk)
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "student").exists()
    equals(tmp_path, train(tmp_path, overrides, resume="auto"), whole)


def test_samples_that_cannot_be_written_end_the_run_and_the_same_command_goes_on(tmp_path, overrides, whole):
    samples = tmp_path / "samples"

    class NoSamples(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if module.round == 1:
                samples.rename(tmp_path / "kept")
                samples.write_text("")

    with pytest.raises(StorageError, match="step_2.jsonl cannot be written .* Make room"):
        train(tmp_path, overrides, also=NoSamples())
    samples.unlink()
    (tmp_path / "kept").rename(samples)
    equals(tmp_path, train(tmp_path, overrides, resume="auto"), whole)
    for file in (whole[0] / "samples").iterdir():
        assert (samples / file.name).read_text() == file.read_text()


@pytest.fixture(scope="module")
def cut(tmp_path_factory, overrides):
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(Killed):
        train(folder, overrides, kill_after=2)
    return folder


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["seed=1"], ["seed=1: the run was made with 0"]),
        (
            ["optim.learning_rate=1", "objective.gamma=0.5"],
            ["objective.gamma=0.5: the run was made with 1.0", "optim.learning_rate=1: the run was made with 0.001"],
        ),
        (["regime.max_steps=4"], ["regime.max_steps=4: the run was made with 6"]),
        (
            ["regime.max_steps=8", "optim.schedule=linear"],
            ["optim.schedule='linear': the run was made with 'constant'"],
        ),
        (["regulariser=none"], ["regulariser.coefficient=0.0"]),
        (["objective=reference", "regime.microbatch_tokens=32"], ["objective.whitening"]),
    ],
)
def test_settings_that_would_change_the_numbers_are_refused(cut, overrides, options, texts):
    before = (cut / "config.yaml").read_text()
    with pytest.raises(ConfigError) as caught:
        train(cut, [*overrides, *options], resume="auto")
    assert all(text in str(caught.value) for text in texts) and "going on would change the numbers" in str(caught.value)
    assert (cut / "config.yaml").read_text() == before and not (cut / "metrics.json").exists()


def test_a_checkpoint_of_another_model_is_refused(cut, overrides, world, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(world / "teacher").state_dict()
    file = cut / "checkpoints" / "last.ckpt"
    saved, before = load_saved(file), file.read_bytes()
    saved["state_dict"] = {f"student.{name}": value for name, value in other.items()}
    torch.save(saved, file)
    try:
        with pytest.raises(ModelError, match=r"last.ckpt: of another model or vocabulary .*weights unknown"):
            train(cut, overrides, resume="auto")
    finally:
        file.write_bytes(before)


def test_what_does_not_change_the_numbers_may_change_and_is_said(tmp_path, overrides, whole, capsys):
    with pytest.raises(Killed):
        train(tmp_path, overrides, kill_after=2)
    options = ["callbacks.checkpoints.every=1", "sampler.batch_size=16"]
    run = train(tmp_path, [*overrides, *options], resume="auto")
    said(
        capsys,
        "callbacks.checkpoints.every was 2, is 1 now: the same numbers",
        "sampler.batch_size was 'auto', is 16 now: other rounding",
    )
    equals(tmp_path, run, whole)


@pytest.mark.parametrize(("key", "was"), [("trainer.precision", "bf16-mixed"), ("model.dtype", "student float32")])
def test_a_machine_where_auto_comes_to_something_else_is_refused(cut, overrides, key, was):
    before = (cut / "begun.json").read_text()
    begun = json.loads(before)
    (cut / "begun.json").write_text(json.dumps(begun | {"numbers": begun["numbers"] | {key: was}}))
    try:
        with pytest.raises(ConfigError, match=f"{key}: is .*float32|32-true.* the run was made with {was}"):
            train(cut, overrides, resume="auto")
    finally:
        (cut / "begun.json").write_text(before)


def test_naming_what_auto_came_to_changes_nothing(tmp_path, cut, overrides):
    shutil.copytree(cut, tmp_path / "cut")
    assert "precision: auto" in (cut / "config.yaml").read_text()
    train(tmp_path / "cut", [*overrides, "trainer.precision=32-true"], resume="auto")


def test_a_longer_run_goes_on_and_equals_one_that_was_long_from_the_start(tmp_path, overrides):
    train(tmp_path / "short", overrides)
    long = train(tmp_path / "long", [*overrides, "regime.max_steps=10"]).module.state_dict()
    run = train(tmp_path / "short", [*overrides, "regime.max_steps=10"], resume="auto")
    assert all(torch.equal(run.module.state_dict()[name], value) for name, value in long.items())
    assert rows(tmp_path / "short") == rows(tmp_path / "long")


def test_no_permission_is_one_message_before_a_model_is_loaded(overrides):
    with pytest.raises(ConfigError, match=r"/proc/runs/x cannot be written \(/proc: "):
        train("/proc/runs/x", [*overrides, "model.student=/no/model/anywhere/at/all"])
