"""Fine-tuning and word-level KD: against a plain loop, resumed, selected as the paper says."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.common.errors import ConfigError, DataError
from minillm.common.seeding import seed_for
from minillm.data import rows_at
from tests.integration.test_resume import Killed, rows, train


@pytest.fixture
def supervised(world):
    """6 optimizer steps of 4 answers each, in two micro-batches."""
    return [
        f"model.student={world}/student", f"model.teacher={world}/teacher", "model.dtype=float64",
        f"data.train_file={world}/train.jsonl", f"data.val_file={world}/val.jsonl", "data.template=paper",
        "regime=supervised", "regime.minibatch_size=4", "regime.microbatch_size=2", "regime.epochs=2",
        "optim=adamw_sft", "optim.learning_rate=1e-3", "callbacks.validation.every=2",
        "callbacks.validation.max_new_tokens=6", "callbacks.checkpoints.every=2", "callbacks.record.export=last",
        "preflight=false",
    ]  # fmt: skip


def plain_loop(world, kd_ratio, *, steps=6, rate=1e-3, smallest=1e-7):
    """Row by row, without padding, by the models' own logits and torch's optimizer and schedule."""
    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float64) for name in ("student", "teacher")
    )
    data = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    norms = [each for name, each in student.named_parameters() if "norm" in name]  # it has no biases
    others = [each for name, each in student.named_parameters() if "norm" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": norms, "weight_decay": 0}], lr=rate, weight_decay=1e-2
    )
    for step in range(steps):
        rows = [data[row] for row in rows_at(seed_for(0, "prompts"), step * 4, 4, len(data))]
        losses, n_tokens = [], 0
        for row in rows:
            prompt = tokenizer(
                "Below is an instruction that describes a task. Write a response that appropriately completes the "
                f"request.\n\n### Instruction:\n{row['instruction']}\n\n### Response:\n"
            ).input_ids
            answer = [*tokenizer(row["output"]).input_ids, tokenizer.eos_token_id]
            ids = torch.tensor([prompt + answer])
            logits = student(ids).logits[0, len(prompt) - 1 : -1]
            loss = cross_entropy(logits, torch.tensor(answer), reduction="sum")
            with torch.no_grad():
                soft = teacher(ids).logits[0, len(prompt) - 1 : -1].softmax(-1)
            losses.append((1 - kd_ratio) * loss + kd_ratio * cross_entropy(logits, soft, reduction="sum"))
            n_tokens += len(answer)
        optimizer.zero_grad()
        (sum(losses) / n_tokens).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = smallest + (rate - smallest) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
    return student


@pytest.mark.quick
@pytest.mark.parametrize("road", ["chunked", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("objective", "kd_ratio"), [("sft", 0.0), ("kd", 0.5)])
def test_the_weights_are_those_of_a_plain_loop(tmp_path, world, supervised, objective, kd_ratio, road):
    run = train(tmp_path, [*supervised, f"objective={objective}", f"linear_loss={road}"])
    assert run.module.step == run.trainer.global_step == 6  # 12 prompts, 2 passes, 4 a step
    wanted = plain_loop(world, kd_ratio).state_dict()
    for name, value in run.module.student.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("microbatch", [1, 4])
def test_micro_batches_change_nothing_but_rounding(tmp_path, supervised, microbatch):
    one, two = (
        train(tmp_path / str(size), [*supervised, "objective=sft", f"regime.microbatch_size={size}"])
        for size in (2, microbatch)
    )
    weights = two.module.state_dict()
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kill_after", [3, 2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, supervised, kill_after):
    options = [*supervised, "objective=kd"]
    whole = train(tmp_path / "whole", options)
    with pytest.raises(Killed):
        train(tmp_path / "cut", options, kill_after=kill_after)
    resumed = train(tmp_path / "cut", options, resume="auto")
    assert resumed.module.step == 6
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_validation_measures_the_loss_on_the_references(tmp_path, world, supervised):
    train(tmp_path, [*supervised, "objective=sft"])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    student = AutoModelForCausalLM.from_pretrained(world / "student", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    total = count = 0
    for row in map(json.loads, (world / "val.jsonl").read_text().splitlines()):
        prompt = tokenizer(
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            f"request.\n\n### Instruction:\n{row['instruction']}\n\n### Response:\n"
        ).input_ids
        answer = [*tokenizer(row["output"]).input_ids, tokenizer.eos_token_id]
        logits = student(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    assert figures["val/loss_raw"] == pytest.approx(total / count, rel=1e-9)
    assert figures["val/loss"] < figures["val/loss_raw"]
    assert {"steps": 6}.items() <= figures.items() and "val/loss_start" not in figures


@pytest.mark.parametrize("monitor", ["loss", "rouge_l", "reverse_kl"])
def test_the_best_checkpoint_is_that_of_the_monitored_figure(tmp_path, supervised, monitor):
    options = [
        "objective=sft",
        f"callbacks.checkpoints.monitor={monitor}",
        "optim.learning_rate=3e-2",
        "model.dtype=float32",
    ]
    train(tmp_path, [*supervised, *options])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    validated = [float(row[f"val/{monitor}"]) for row in rows(tmp_path) if f"val/{monitor}" in row]
    assert len(validated) == 4 and len(set(validated)) > 1  # raw and steps 2, 4, 6
    assert figures[f"best/{monitor}"] == (max if monitor == "rouge_l" else min)(validated)


BEST = ["callbacks.checkpoints.monitor=reverse_kl", "callbacks.record.export=best"]


def test_fine_tuning_needs_no_teacher(tmp_path, supervised):
    options = ["objective=sft", "callbacks.checkpoints.monitor=loss"]
    alone = train(tmp_path / "alone", [*supervised, *options, "model.teacher=null"])
    beside = train(tmp_path / "beside", [*supervised, *options])
    weights = beside.module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in alone.module.state_dict().items())
    figures = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert not [name for name in figures if "teacher" in name or "reverse_kl" in name]
    card = (tmp_path / "alone" / "student" / "README.md").read_text()
    assert "Fine-tuned on" in card and "train.jsonl" in card
    with pytest.raises(ConfigError, match="monitor=reverse_kl: the validation of this run measures rouge_l, loss"):
        train(
            tmp_path / "no",
            [
                *supervised,
                *options,
                "model.teacher=null",
                "callbacks.checkpoints.monitor=reverse_kl",
                "callbacks.record.export=best",
            ],
        )


def test_a_model_from_scratch(tmp_path, world, supervised):
    scratch = [
        "model.student={_target_:minillm.models.FromScratch,architecture:{_target_:minillm.models.Architecture,type:llama,"
        f"layers:1,width:16,heads:2,kv_heads:2,ffn:32,vocabulary:40,tied:true}},tokenizer:{world}/student,seed:SEED}}",
        "model.teacher=null",
    ]
    one, again, other = (
        train(tmp_path / name, [*supervised, "objective=sft", scratch[0].replace("SEED", seed), scratch[1]])
        for name, seed in (("one", "0"), ("again", "0"), ("other", "1"))
    )
    mine = one.module.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in again.module.state_dict().items())
    assert any(not torch.equal(value, mine[name]) for name, value in other.module.state_dict().items())


def test_what_cannot_work_is_said_at_once(tmp_path, world, supervised):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, [*supervised, "objective=paper", "start.steps=1"])
    assert len(caught.value.problems) == 3  # objective, start, the regulariser that objective=paper brings
    with pytest.raises(ConfigError, match="model.teacher=null with an objective that needs it"):
        train(tmp_path, [*supervised, "objective=kd", "model.teacher=null"])
    with pytest.raises(ConfigError, match="wanted regime=supervised"):
        train(tmp_path, [*(each for each in supervised if "regime" not in each), "objective=sft"])
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"instruction": "name the cat"}\n')
    with pytest.raises(DataError, match=r"none of 1 prompts is left \(1 without a response \(key output\)\)"):
        train(tmp_path, [*supervised, "objective=sft", f"data.train_file={bare}"])
    teacher = "{source:" + str(world / "teacher") + ",offload:true,_target_:minillm.models.Checkpoint}"
    with pytest.raises(ConfigError, match="its body is away during updates"):
        train(tmp_path, [*supervised[2:], supervised[0], "~model.teacher", f"+model.teacher={teacher}", "objective=kd"])
    assert not (tmp_path / "config.yaml").exists()
