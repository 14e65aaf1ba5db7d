"""Runs that train adapters: resumed, exported, gone on from; and runs that recompute activations."""

import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError, ModelError
from minillm.export import export
from minillm.models import Checkpoint
from tests.integration.test_resume import Killed, rows, train
from tests.tiny import make_model

IDS = torch.arange(1, 9)[None]
LORA = ["lora=default", "model.lora.rank=4", "callbacks.record.export=last"]


def test_a_run_with_adapters_resumes_exports_and_can_be_gone_on_from(tmp_path, overrides, world, caplog):
    caplog.set_level("INFO", logger="minillm.train.build")
    whole = train(tmp_path / "whole", [*overrides, *LORA])
    assert "On cpu: trainer.precision: 32-true, model.dtype: student float32, teacher float32" in caplog.text
    with pytest.raises(Killed):
        train(tmp_path / "cut", [*overrides, *LORA], kill_after=2)
    resumed = train(tmp_path / "cut", [*overrides, *LORA], resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")

    folder = tmp_path / "cut"
    for name in ("last.ckpt", "best.ckpt"):
        saved = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
        assert saved and all(".lora_" in each for each in saved)
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    adapted = resumed.module.student.eval()
    torch.testing.assert_close(student(IDS).logits, adapted(IDS).logits, rtol=0, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(world / "student")
    assert (student(IDS).logits - base(IDS).logits).abs().max() > 1e-2
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "student"), folder / "adapter")
    torch.testing.assert_close(beside(IDS).logits, adapted(IDS).logits, rtol=0, atol=1e-5)

    export(folder, tmp_path / "exported")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").state_dict()
    assert again.keys() == student.state_dict().keys()
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    resumed.module.load_state_dict(best)
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")(IDS).logits
    torch.testing.assert_close(logits, adapted(IDS).logits, rtol=0, atol=1e-5)
    source = ["model=own", f"model.student.source={world}/student", f"model.student.adapter={folder}/adapter"]
    on = [*overrides[1:], *source, *LORA, "regime.max_steps=2", "start.steps=0"]
    again = train(tmp_path / "on", [*on, "optim.learning_rate=1e-12"])
    torch.testing.assert_close(again.module.student.eval()(IDS).logits, student(IDS).logits, rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match=f"names '{world}/student with {folder}/adapter', and it is put on"):
        Checkpoint(f"{world}/student", adapter=str(tmp_path / "on" / "adapter")).load()


def test_adapters_do_not_go_on_upon_another_base(tmp_path, overrides, world):
    """Of the same shapes, in the same place; the base is in no checkpoint."""
    place = shutil.copytree(world / "student", tmp_path / "student")
    options = [*overrides, *LORA, f"model.student={place}"]
    with pytest.raises(Killed):
        train(tmp_path / "run", options, kill_after=2)
    make_model(seed=7, layers=1, dtype=torch.float32).save_pretrained(place)
    with pytest.raises(ConfigError, match=r"model\.student: other content than the run in .* was begun with"):
        train(tmp_path / "run", options, resume="auto")


def test_the_best_adapters_are_exported(tmp_path, overrides, world):
    """A step that spoils the student: the best is the untrained one."""
    options = ["start.steps=0", "regime.max_steps=2", "optim.learning_rate=10", "optim.warmup_steps=0"]
    train(tmp_path, [*overrides, "lora=default", *options])
    student, base = (AutoModelForCausalLM.from_pretrained(each) for each in (tmp_path / "student", world / "student"))
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in student.state_dict().items())


def test_a_pruned_teacher_takes_adapters_and_a_teacher_its_own(tmp_path, overrides, world):
    train(tmp_path / "first", [*overrides, *LORA])
    teacher = [
        f"model.teacher.source={world}/student",
        f"model.teacher.adapter={tmp_path}/first/adapter",
        "~model.teacher.architecture",
    ]
    pruned = ["model.student.drop_layers=null", "+model.student.keep_layers=[0]"]
    run = train(tmp_path / "second", [*overrides[2:], *teacher, *pruned, *LORA])
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "first" / "student")
    torch.testing.assert_close(run.module.pair.teacher.network(IDS).logits, adapted(IDS).logits, rtol=0, atol=1e-5)
    assert run.module.student.peft_config["default"].base_model_name_or_path == (
        f"{world}/student with {tmp_path}/first/adapter, layers [0]"
    )


@pytest.mark.parametrize("options", [[], ["lora=default"]])
def test_recomputed_activations_change_no_run(tmp_path, overrides, options):
    kept, recomputed = (
        train(tmp_path / name, [*overrides, *options, f"model.gradient_checkpointing={name}"])
        for name in ("false", "true")
    )
    mine, theirs = recomputed.module.state_dict(), kept.module.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)
    assert rows(tmp_path / "true")[-2]["rollout/length"] == rows(tmp_path / "false")[-2]["rollout/length"]


def test_fine_tuning_adapters_without_a_teacher_resumes_and_recomputes(tmp_path, world):
    options = [
        f"model.student={world}/student", "model.teacher=null", f"data.train_file={world}/train.jsonl",
        f"data.val_file={world}/val.jsonl", "data.template=paper", "objective=sft", "regime=supervised",
        "regime.minibatch_size=4", "regime.microbatch_size=2", "regime.epochs=2", "optim=adamw_sft",
        "optim.learning_rate=1e-2", "callbacks.validation.every=2", "callbacks.validation.max_new_tokens=6",
        "callbacks.checkpoints.every=2", *LORA,
    ]  # fmt: skip
    whole = train(tmp_path / "whole", options)
    with pytest.raises(Killed):
        train(tmp_path / "cut", options, kill_after=2)
    resumed = train(tmp_path / "cut", [*options, "model.gradient_checkpointing=true"], resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert mine.keys() == theirs.keys() and all(".lora_" in name for name in mine)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "cut" / "student")
    torch.testing.assert_close(student(IDS).logits, resumed.module.student.eval()(IDS).logits, rtol=0, atol=1e-5)
