"""A learning rate that is far too large: a student that guesses, and whose gradients are 0, is never the best."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integration.test_resume import rows, train

GUESSES, ZERO = "the student gives all 31 tokens the same probability", "WARNING: all gradients are 0, so that nothing"


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("monitor", ["reverse_kl", "rouge_l", "loss"])
def test_the_best_stays_the_one_before_it(tmp_path, overrides, world, capsys, monitor):
    options = ["start.steps=0", "optim.learning_rate=1e6", "optim.warmup_steps=0", "regime.max_steps=4"]
    train(tmp_path, [*overrides, *options, "regulariser=none", f"callbacks.checkpoints.monitor={monitor}"])
    out = said(capsys)
    assert out.count(ZERO) == 1 and "is so large that the student gives" in out
    assert out.count(GUESSES) == 2 and f"no validation was better in {monitor} than the first" in out
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["best/step"] == 0 and figures["val/uniform"] == 1
    assert "val/reverse_kl" not in figures  # which a sweep would take for its best
    assert [row.get("val/uniform") for row in rows(tmp_path) if "rollout/length" not in row] == [None, "1.0", "1.0"]
    before, after = (load_file(folder / "student/model.safetensors") for folder in (world, tmp_path))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_fine_tuning_says_it_too(tmp_path, supervised, capsys):
    options = ["optim.learning_rate=1e6", "optim.warmup_steps=0", "regime.max_steps=2"]
    train(tmp_path, [*supervised, *options, "callbacks.checkpoints.monitor=loss"])
    out = said(capsys)
    assert ZERO in out and GUESSES in out
    assert json.loads((tmp_path / "metrics.json").read_text())["best/step"] == 0


def test_a_student_that_always_guesses_has_no_best(tmp_path, overrides, world, capsys):
    shutil.copytree(world / "student", tmp_path / "flat")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "flat")
    torch.nn.init.zeros_(network.get_output_embeddings().weight)
    network.save_pretrained(tmp_path / "flat")
    options = [f"model.student={tmp_path}/flat", "start.steps=0", "optim.learning_rate=1e-30", "regime.max_steps=2"]
    train(tmp_path / "run", [*overrides, *options])
    out = said(capsys)
    assert "(last weights)" in out and ZERO not in out
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["val/uniform_raw"] == 1 and not any(name.startswith("best/") for name in figures)
