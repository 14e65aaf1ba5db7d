"""One run, and each figure that it shows in two places: on screen, in preflight.md, metrics.csv, metrics.json and
checkpoints/."""

import csv
import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm.common.saved import load_saved
from minillm.evaluation.metrics import rouge_l
from minillm.evaluation.suite.results import names_of
from minillm.export import export
from minillm.train.callbacks import Validation
from minillm.train.callbacks.boundary import find
from tests.integration.test_resume import train

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def run(tmp_path_factory, overrides):
    """The run's directory and what it printed: 2 supervised steps in one round, 6 steps in 3 rollouts."""
    folder = tmp_path_factory.mktemp("agree") / "mine"
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        for module in ("progress", "validation", "record"):
            patch.setattr(f"minillm.train.callbacks.{module}.say", shown.append)
        patch.setattr("minillm.train.callbacks.validation.show_figures", lambda *table: shown.append(table))
        train(folder, [*overrides, "preflight=true"])
    return folder, shown


@pytest.fixture(scope="module")
def rows(run):
    with open(run[0] / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def figures(run):
    return json.loads((run[0] / "metrics.json").read_text())


def test_rollouts_and_passes_are_those_of_minillm_everywhere(run, rows):
    page = (run[0] / "preflight.md").read_text()
    assert "2 supervised, then 6 optimizer steps of 2 answers, in 3 rollouts of 4: 12 samples" in page
    assert "1 passes over the prompts" in page  # 12 prompts
    assert figures(run)["rollouts"] == sum(bool(row["rollout/length"]) for row in rows) == 3
    assert sum(each.startswith("step ") for each in run[1] if isinstance(each, str)) == 3


def test_the_loss_on_screen_names_what_is_added_to_it(run, rows):
    lines = [each for each in run[1] if isinstance(each, str)]
    assert any("loss is the objective's, L_PT is added to it" in line for line in lines)
    (line,) = (line for line in lines if line.startswith("step 6/6"))
    (row,) = (row for row in rows if row["progress/optimizer_step"] == "8" and row["train/loss"])
    shown = dict(re.findall(r"(loss|L_PT|GB) ([\d.]+)", line))
    for name, key in {"loss": "train/loss", "L_PT": "train/pretrain", "GB": "memory/peak_gb"}.items():
        assert float(shown[name]) == pytest.approx(float(row[key]), rel=1e-2)


def test_peak_memory_before_the_first_step_is_that_of_the_run(run, rows):
    """On a CPU both are of the whole process."""
    text = (run[0] / "preflight.md").read_text()
    planned = float(re.search(r"peak memory about ([\d.]+) GB", text)[1])
    peak = max(float(row["memory/peak_gb"]) for row in rows if row["memory/peak_gb"])
    assert planned == pytest.approx(peak, rel=0.1)


def test_checkpoints_and_stages_are_named_start_best_and_last(run, tmp_path):
    folder, shown = run
    table = next(each[1] for each in shown if isinstance(each, tuple) and each[0] == "Figures of all stages")
    assert list(table) == ["raw", "start", "last", "best", "teacher"]
    found = figures(run)
    for row, key in {"raw": "val/loss_raw", "start": "val/loss_start", "last": "val/loss", "best": "best/loss"}.items():
        assert table[row]["loss"] == found[key]
    steps = {name: load_saved(folder / "checkpoints" / f"{name}.ckpt")["minillm"] for name in ("start", "best", "last")}
    assert steps["start"] == {"round": 1, "start_step": 2, "step": 0}
    assert (steps["best"]["step"], steps["last"]["step"]) == (found["best/step"], 6)
    export(folder / "checkpoints" / "start.ckpt", tmp_path / "start")
    card = (tmp_path / "start" / "README.md").read_text()
    assert "start" in card and f"{found['val/reverse_kl_start']:.4g}" in card
    saved = load_saved(folder / "checkpoints" / "start.ckpt")["state_dict"]
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "start").state_dict()
    assert all(torch.equal(weights[name.removeprefix("student.")], each) for name, each in saved.items())


def test_a_table_of_models_names_the_weights_of_a_run(run, tmp_path):
    student, other = str(run[0] / "student"), str(tmp_path / "else" / "student")
    assert list(names_of([student, other, "gpt2"]).values()) == ["mine/best", "else/student", "gpt2"]
    both = [student, str(run[0] / "best")]  # an export of that name beside it
    assert list(names_of(both).values()) == ["mine/student", "mine/best"]


def test_with_greedy_answers_rouge_is_theirs_and_the_change_of_kl_has_an_interval(overrides, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("minillm.train.callbacks.record.say", said.append)
    run = train(tmp_path / "mine", [*overrides, "callbacks.validation.greedy=true"])
    rows = [json.loads(line) for line in (tmp_path / "mine" / "samples" / "raw.jsonl").read_text().splitlines()]
    assert any(row["greedy"] != row["answer"] for row in rows)
    validation = find(run.trainer, Validation)
    own = [rouge_l(row["greedy"], row["references"]) for row in rows]
    assert validation.stages["raw"]["rouge_l"] == pytest.approx(sum(own) / len(own))
    assert validation.samples["raw"] == [row["greedy"] for row in rows[:5]]
    (line,) = (each for each in said if each.startswith("Reverse KL, "))
    before, after = (validation.stages[name]["reverse_kl"] for name in ("raw", "start"))
    assert f"{after - before:+.3f} [" in line and f"paired over {len(rows)} prompts" in line
