"""A run beside siblings stops early by the median rule, in both regimes, and ends as a finished one."""

import json

import pytest
from hydra import compose, initialize_config_dir

from minillm.build import build
from minillm.settings import check_config
from tests.conf.test_compose import CONF


def fit(folder, overrides, *, siblings):
    for number, level in enumerate(siblings):
        (folder / str(number)).mkdir(parents=True)
        rows = "".join(f"{step},{level}\n" for step in range(0, 20, 2))
        (folder / str(number) / "metrics.csv").write_text(f"progress/optimizer_step,val/reverse_kl\n{rows}8,half")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = ["callbacks=median", "callbacks.median.warmup_steps=4", "callbacks.median.min_siblings=2"]
        cfg = compose("train", [*overrides, *options, "logger=csv", f"run.dir={folder}/mine", "run.name=x"])
    run = build(cfg, check_config(cfg))
    run.trainer.fit(run.module, run.datamodule)
    return json.loads((folder / "mine" / "metrics.json").read_text())


@pytest.mark.parametrize("regime", ["on_policy", "supervised"])
def test_a_hopeless_trial_ends_as_a_finished_one(tmp_path, overrides, regime):
    options = ["preflight=false"]
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


@pytest.mark.parametrize(("siblings", "sweep"), [([1e9] * 3, True), ([1e-6], True), ([1e-6] * 3, False)])
def test_others_go_on(tmp_path, overrides, siblings, sweep, capsys):
    """Better than the median; too few siblings; neighbours that are no siblings, because nothing is a sweep."""
    if sweep:
        (tmp_path / ".trials").mkdir()
    figures = fit(tmp_path, [*overrides, "start.steps=0", "preflight=false"], siblings=siblings)
    assert "stopped_early" not in figures and figures["steps"] == 6
    assert ("is no trial of a sweep" in " ".join(capsys.readouterr().out.split())) is not sweep
