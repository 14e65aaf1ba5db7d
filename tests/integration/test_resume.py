"""A run that is cut off and resumed equals one that was not: weights, figures, samples."""

import csv
import json

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError
from minillm.train.build import build
from minillm.train.callbacks import Validation
from minillm.train.callbacks.boundary import find
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF


class Killed(Exception):
    pass


class KillAfter(L.Callback):
    def __init__(self, rounds):
        self.rounds = rounds

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.round == self.rounds:
            raise Killed


def train(run_dir, overrides, *, resume=None, kill_after=None, also=None):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, "logger=csv", f"run.dir={run_dir}", "run.name=test"])
    with open_dict(cfg):
        cfg.resume = resume
    settings = check_config(cfg)
    run = build(settings)
    if kill_after is not None:
        run.trainer.callbacks.append(KillAfter(kill_after))
    if also is not None:
        run.trainer.callbacks.insert(1, also)  # behind our handler of signals
    run.trainer.fit(run.module, run.datamodule, ckpt_path=run.ckpt_path, weights_only=True)
    return run


def rows(run_dir):
    with open(run_dir / "metrics.csv", newline="") as stream:
        kept = [
            {k: v for k, v in row.items() if "time/" not in k and "memory/" not in k and "seconds" not in k and v}
            for row in csv.DictReader(stream)
        ]
    return [row for row in kept if row]


@pytest.mark.quick
@pytest.mark.parametrize("kill_after", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, overrides, kill_after):
    whole = train(tmp_path / "whole", overrides)
    with pytest.raises(Killed):
        train(tmp_path / "cut", overrides, kill_after=kill_after)
    resumed = train(tmp_path / "cut", overrides, resume="auto")
    assert resumed.module.step == whole.module.step == 6
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    sample = "samples/step_6.jsonl"
    assert (tmp_path / "cut" / sample).read_text() == (tmp_path / "whole" / sample).read_text()


@pytest.mark.parametrize("objective", ["extrapolated", "jsd"])
def test_objectives_that_need_more_of_the_start_or_of_the_rollout_resume_too(tmp_path, overrides, objective):
    """The student at the start is neither in the checkpoint nor the student of the checkpoint."""
    overrides = [*overrides, f"objective={objective}", *(["objective.long_part=true"] if objective == "jsd" else [])]
    whole = train(tmp_path / "whole", overrides)
    with pytest.raises(Killed):
        train(tmp_path / "cut", overrides, kill_after=3)
    resumed = train(tmp_path / "cut", overrides, resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    if objective == "extrapolated":
        file = tmp_path / "cut" / "begun.json"
        file.write_text(file.read_text().replace('"model.student": "', '"model.student": "0'))
        with pytest.raises(ConfigError, match="model.student: other content than the run"):
            train(tmp_path / "cut", overrides, resume="auto")


def test_another_model_is_p0_of_extrapolated(tmp_path, overrides, world):
    """The student as p0 gives the run without the key; another model gives another run, and is recognised again."""
    overrides = [*overrides, "objective=extrapolated", "regime.max_steps=2"]
    default = train(tmp_path / "default", overrides).module.state_dict()
    same = train(tmp_path / "same", [*overrides, f"model.reference={world}/student"]).module.state_dict()
    assert all(torch.equal(same[name], default[name]) for name in default)
    other = train(tmp_path / "other", [*overrides, f"model.reference={world}/teacher"]).module.state_dict()
    assert any(not torch.equal(other[name], default[name]) for name in default)
    found = json.loads((tmp_path / "other" / "begun.json").read_text())["data"]
    assert found["model.reference"] != found["model.student"]


def test_minillm_begins_with_a_fresh_optimizer(tmp_path, overrides):
    run = train(tmp_path, overrides)
    state = run.trainer.optimizers[0].state
    assert {int(each["step"]) for each in state.values()} == {6}  # 8 updates in all, 2 of them in the supervised start


def test_resuming_a_finished_run_adds_nothing(tmp_path, overrides):
    train(tmp_path, overrides)
    before = rows(tmp_path), (tmp_path / "metrics.json").read_text().split('"wall_seconds"')[0]
    again = train(tmp_path, overrides, resume="auto")
    after = rows(tmp_path), (tmp_path / "metrics.json").read_text().split('"wall_seconds"')[0]
    assert before == after and again.module.step == 6


def test_best_weights_are_those_that_were_validated(tmp_path, overrides):
    """Without a supervised start the first validation is of the untrained student, before the first rollout."""
    options = ["start.steps=0", "regime.max_steps=2", "optim.learning_rate=10", "optim.warmup_steps=0"]
    train(tmp_path, [*overrides, *options])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["best/step"] == 0 and figures["best/reverse_kl"] == figures["val/reverse_kl_raw"]
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    original = AutoModelForCausalLM.from_pretrained(overrides[0].split("=")[1]).state_dict()
    assert all(torch.equal(saved[f"student.{name}"], value) for name, value in original.items())
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in original.items())
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"| reverse_kl | {figures['best/reverse_kl']:.4g} |" in card


def test_a_start_on_the_references_of_the_data(tmp_path, overrides):
    options = ["start.responses=reference", "start.kd_ratio=0.5", "start.learning_rate=1e-2", "start.steps=60"]
    figures = find(train(tmp_path, [*overrides, *options]).trainer, Validation).final_figures()
    losses = [float(row["start/loss"]) for row in rows(tmp_path) if "start/loss" in row]
    assert losses[-1] < 0.8 * losses[0] and figures["val/reverse_kl_start"] != figures["val/reverse_kl_raw"]


def test_another_seed_gives_another_run(tmp_path, overrides):
    one, two = (train(tmp_path / str(seed), [*overrides, f"seed={seed}"]) for seed in (0, 1))
    first = one.module.state_dict()
    assert any(not torch.equal(first[name], value) for name, value in two.module.state_dict().items())


def test_training_moves_towards_the_teacher(tmp_path, overrides):
    longer = [
        *overrides,
        "regime.max_steps=60",
        "callbacks.validation.every=null",
        "regulariser=none",
        "optim.learning_rate=5e-3",
    ]
    figures = find(train(tmp_path / "long", longer).trainer, Validation).final_figures()
    assert figures["val/reverse_kl"] < 0.8 * figures["val/reverse_kl_raw"]


def test_a_run_does_not_go_on_with_other_rows(tmp_path, world, overrides):
    """The same name of a file, the same number of rows."""
    file = tmp_path / "train.jsonl"
    lines = (world / "train.jsonl").read_text().splitlines()
    file.write_text("\n".join(lines) + "\n")
    options = [*overrides, f"data.train_file={file}"]
    with pytest.raises(Killed):
        train(tmp_path / "run", options, kill_after=2)
    file.write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(ConfigError, match="data.train_file: other content than the run .* was begun with"):
        train(tmp_path / "run", options, resume="auto")


def test_of_equal_validations_the_later_weights_are_kept(tmp_path, overrides):
    """Rouge-L of a model that never hits a word stays at 0."""
    options = ["callbacks.checkpoints.monitor=rouge_l", "callbacks.validation.max_new_tokens=1"]
    run = train(tmp_path, [*overrides, *options])
    figures = find(run.trainer, Validation).final_figures()
    assert figures["val/rouge_l"] == figures["val/rouge_l_raw"]
    assert json.loads((tmp_path / "metrics.json").read_text())["best/step"] == 6


def test_sizes_that_were_auto_stay_what_they_were(tmp_path, overrides):
    """So that a run that goes on elsewhere rounds as it did."""
    with pytest.raises(Killed):
        train(tmp_path, overrides, kill_after=2)
    file = tmp_path / "begun.json"
    begun = json.loads(file.read_text())
    sizes = begun["sizes"]
    assert sizes == {"rows": 32, "tokens": 2048, "answers": 8, "chunk_mb": 32.0}
    for damaged in ({"rows": -1}, sizes | {"rows": "3"}):
        file.write_text(json.dumps(begun | {"sizes": damaged}))
        with pytest.raises(ConfigError, match=r"begun.json: damaged"):
            train(tmp_path, overrides, resume="auto")
    file.write_text("[" * 9999)
    with pytest.raises(ConfigError, match=r"begun.json: damaged"):
        train(tmp_path, overrides, resume="auto")
    file.write_text(json.dumps(begun | {"sizes": sizes | {"rows": 3, "chunk_mb": 16.0}}))
    run = train(tmp_path, overrides, resume="auto")
    assert run.module.sampler.batch_size == 3 and run.module.linear_loss.chunk_mb == 16.0
    assert json.loads(file.read_text())["sizes"]["rows"] == 3
