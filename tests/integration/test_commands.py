"""train.py, then evaluate.py, as a user calls them; and what a user's mistakes look like."""

import csv
import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import call


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.mark.quick
def test_the_commands_in_short(place, world, overrides):
    small = ["start.steps=0", "regime.max_steps=2", "callbacks.validation.every=null", "logger=csv", "run.name=short"]
    done = call("train.py", *overrides, *small, cwd=place)
    assert done.poll() == 0, done.stderr[-3000:]
    assert json.loads((place / "runs" / "short" / "metrics.json").read_text())["steps"] == 2
    arguments = ["models=[runs/short/student]", f"data.files=[{world}/val.jsonl]", "seeds=[1]", "max_new_tokens=4"]
    measured = call("evaluate.py", *arguments, "run.name=measured", cwd=place)
    assert measured.poll() == 0, measured.stderr[-3000:]
    assert (place / "runs" / "measured" / "report" / "index.html").exists()


def test_train_then_evaluate(place, world, overrides):
    run = place / "runs" / "tiny"
    done = call("train.py", *overrides, "preflight=true", "run.name=tiny", cwd=place, WANDB_MODE="offline")
    assert done.poll() == 0, done.stderr[-3000:]
    assert "Rouge-L is measured against the references" in done.stdout

    figures = json.loads((run / "metrics.json").read_text())
    for name in ("reverse_kl", "rouge_l", "length", "distinct_4"):
        assert {f"val/{name}_raw", f"val/{name}_start", f"val/{name}"} <= figures.keys()
    assert {"val/teacher_length", "wall_seconds"} <= figures.keys()
    assert (figures["steps"], figures["start_steps"]) == (6, 2)
    with open(run / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["progress/optimizer_step"] for row in rows if row["train/loss"]] == ["4", "6", "8"]
    last, validated = rows[-2:]
    shares = [float(last[f"time/share_{phase}"]) for phase in ("rollout", "score", "update")]
    assert sum(shares) == pytest.approx(1) and min(shares[0], shares[2]) > 0 and float(last["memory/peak_gb"]) > 0
    assert float(validated["val/reverse_kl"]) == figures["val/reverse_kl"]
    assert {"raw.jsonl", "start.jsonl", "step_6.jsonl"} <= {file.name for file in (run / "samples").iterdir()}
    assert {"last.ckpt", "previous.ckpt", "best.ckpt"} <= {file.name for file in (run / "checkpoints").iterdir()}
    assert (run / "wandb" / "run_id").exists() and list((run / "wandb").glob("offline-run-*"))

    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("student.") for name in checkpoint["state_dict"])
    student, tokenizer = (kind.from_pretrained(run / "student") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert student.config.num_hidden_layers == 1 and tokenizer.eos_token == "</s>"
    assert student.generation_config.eos_token_id == [0]
    assert "MiniLLM" in (run / "student" / "README.md").read_text()

    again = call("train.py", *overrides, "run.name=tiny", cwd=place)
    assert again.poll() == 1 and "already holds a run" in again.stderr and "resume=auto" in again.stderr
    assert json.loads((run / "metrics.json").read_text()) == figures

    arguments = [
        f"models=[{run}/student,{world}/student]",
        f"teacher={world}/teacher",
        f"data.files=[{world}/val.jsonl]",
    ]
    arguments += ["seeds=[1,2]", "max_new_tokens=6", "run.name=eval"]
    measured = call("evaluate.py", *arguments, cwd=place)
    assert measured.poll() == 0, measured.stderr[-3000:]
    results = json.loads((place / "runs" / "eval" / "metrics.json").read_text())
    assert list(results["answers"]) == ["plain"] and results["exposure"] == results["calibration"] == {}
    mine = results["answers"]["plain"][f"{world}/val.jsonl"][f"{run}/student"]
    assert mine["prompts"] == 5 and set(mine["figures"]["rouge_l"]["per_seed"]) == {"1", "2"}
    assert {"reverse_kl", "length", "truncated", "distinct_4"} <= mine["figures"].keys()
    answers = [json.loads(line) for line in (place / "runs" / "eval" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * 2 * 5 and {"id", "prompt", "answer", "references", "reverse_kl"} <= answers[0].keys()


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("script", "arguments", "text"),
    [
        ("train.py", ["objective.gama=1"], "objective.gama: no such key; did you mean objective.gamma?"),
        slow("train.py", ["trainer.gradient_clip_val=1"], "use optim.grad_clip"),
        slow("train.py", ["objective=papr"], "objective=papr: no such choice; did you mean paper?"),
        (
            "train.py",
            ["model.student=./a", "model.teacher=./t", "data.train_file=b.jsonl", "data.val_file=c.jsonl"],
            "4 problems in the conf",
        ),
        slow("minillm.chain", [], "pair: missing; wanted pair=..."),
        ("evaluate.py", ["models=[]", "seeds=[]"], "2 problems in the configuration"),
    ],
)
def test_mistakes_are_one_message_and_no_traceback(place, script, arguments, text):
    done = call(script, *arguments, "run.name=mistake", cwd=place)
    assert done.poll() == 1 and text in done.stderr and "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr  # Hydra's line
    assert not (place / "runs" / "mistake").exists()


def test_a_broken_data_file_is_named_with_its_line(place, world, overrides):
    broken = place / "broken.jsonl"
    broken.write_text('{"instruction": "a"}\n{"instruction": \n{"input": "b"}\n')
    done = call("train.py", *overrides, f"data.train_file={broken}", "run.name=broken", cwd=place)
    assert done.poll() == 1 and "Traceback" not in done.stderr
    assert not (place / "runs" / "broken").exists()  # the name is free for another try
    assert "broken.jsonl:2: not JSON" in done.stderr and "broken.jsonl:3: key instruction" in done.stderr


def test_the_command_makes_a_report_alone_and_leaves_no_other_directory(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.csv").write_text("progress/optimizer_step,val/rouge_l\n0,8.5\n5,11.0\n")
    done = call("evaluate.py", "report=mine", cwd=tmp_path)
    assert done.poll() == 0 and "Wrote mine/report/index.html" in done.stdout
    assert (tmp_path / "mine" / "report" / "index.html").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
