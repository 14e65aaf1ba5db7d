"""A run beside siblings stops early by the median rule, in both regimes, and ends as a finished one."""

import json

import lightning as L
import pytest
from hydra import compose, initialize_config_dir

from minillm.common.errors import Interrupted
from minillm.common.saved import load_saved
from minillm.train.build import build
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF
from tests.integration.test_resume import Killed, train

RULE = ["callbacks=median", "callbacks.median.warmup_steps=4", "callbacks.median.min_siblings=2"]


def write_siblings(folder, siblings):
    for number, level in enumerate(siblings):
        (folder / str(number)).mkdir(parents=True)
        rows = "".join(f"{step},{level}\n" for step in range(0, 20, 2))
        (folder / str(number) / "metrics.csv").write_text(f"progress/optimizer_step,val/reverse_kl\n{rows}8,half")


def fit(folder, overrides, *, siblings):
    write_siblings(folder, siblings)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, *RULE, "logger=csv", f"run.dir={folder}/mine", "run.name=x"])
    run = build(check_config(cfg))
    run.trainer.fit(run.module, run.datamodule)
    return json.loads((folder / "mine" / "metrics.json").read_text())


@pytest.mark.parametrize("regime", ["on_policy", "supervised"])
def test_a_hopeless_trial_ends_as_a_finished_one(tmp_path, overrides, regime):
    options = ["callbacks.checkpoints.every=null"]
    if regime == "supervised":
        kept = ("start", "regime", "regulariser", "data.corpus", "data.block")
        overrides = [each for each in overrides if not each.startswith(kept)]
        options += ["regime=supervised", "objective=kd", "regime.epochs=null", "regime.max_steps=6"]
        options += ["regime.minibatch_size=2", "regime.microbatch_size=1"]
    (tmp_path / ".trials").mkdir()
    figures = fit(tmp_path, [*overrides, *options], siblings=[1e-6, 1e-6, 1e-6])
    # The supervised start of 2 steps counts for the warm-up: MiniLLM's step 2 is the fourth.
    assert figures["stopped_early"] == figures["steps"] == (2 if regime == "on_policy" else 4)
    assert figures["val/reverse_kl"] > 0 and (tmp_path / "mine" / "student" / "config.json").exists()
    assert (tmp_path / "mine" / "samples" / f"step_{figures['steps']}.jsonl").exists()
    assert load_saved(tmp_path / "mine" / "checkpoints" / "last.ckpt")["minillm"]["step"] == figures["steps"]


@pytest.mark.parametrize(("siblings", "sweep"), [([1e9] * 3, True), ([1e-6], True), ([1e-6] * 3, False)])
def test_others_go_on(tmp_path, overrides, siblings, sweep, capsys):
    """Better than the median; too few siblings; neighbours that are no siblings, because nothing is a sweep."""
    if sweep:
        (tmp_path / ".trials").mkdir()
    figures = fit(tmp_path, [*overrides, "start.steps=0"], siblings=siblings)
    assert "stopped_early" not in figures and figures["steps"] == 6
    assert ("is no trial of a sweep" in " ".join(capsys.readouterr().out.split())) is not sweep


class Asked(L.Callback):
    """A signal comes in the round that ends with this step, before its validation."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.step == self.step:
            module.preemption.requested = "SIGTERM"


@pytest.mark.parametrize("owed", [True, False])
def test_a_resumed_trial_is_judged_by_the_validation_it_owed_or_had_made(tmp_path, overrides, owed):
    """Of a run that was killed behind its last.ckpt, and of one that left the validation for later."""
    (tmp_path / ".trials").mkdir()
    options, mine = [*overrides, *RULE], tmp_path / "mine"
    with pytest.raises(Interrupted if owed else Killed):
        train(mine, options, **(dict(also=Asked(2)) if owed else dict(kill_after=2)))
    saved = load_saved(mine / "checkpoints" / "last.ckpt")
    assert saved["minillm"]["step"] == 2 and bool(saved["callbacks"]["Validation"]["owed"]) is owed
    write_siblings(tmp_path, [1e-6] * 3)
    for _ in range(2):  # the second finds that all is done
        train(mine, options, resume="auto")
        figures = json.loads((mine / "metrics.json").read_text())
        assert figures["stopped_early"] == figures["steps"] == 2
        assert load_saved(mine / "checkpoints" / "last.ckpt")["callbacks"]["Validation"]["owed"] is None
