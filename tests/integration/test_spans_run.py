"""Runs with a teacher that has tokens of its own: they resume bit for bit, and say what they measure and drop."""

import json

import pytest
import torch

import minillm
from minillm.common.errors import ConfigError, ModelError
from tests.integration.test_resume import Killed, rows, train
from tests.tiny import make_model
from tests.tokenizers import byte_level, byte_pairs, few_letters


@pytest.fixture(scope="module")
def other(world, overrides):
    """The student has letters and pairs of them, the teacher bytes; templates differ too."""
    tokenizers = {"pairs": few_letters(), "bytes": byte_level()}
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        make_model(vocabulary=len(tokenizer), seed=seed, dtype=torch.float32).save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)
    ours = [f"model.student={world}/pairs", f"model.teacher={world}/bytes", "objective=spans", "sampler=student"]
    ours += ["sampler.max_new_tokens=6", "start.steps=0", "callbacks.checkpoints.monitor=reverse_kl_per_byte"]
    return [*(each for each in overrides if not each.startswith("sampler.")), *ours]


@pytest.mark.quick
def test_a_run_resumes_counts_what_it_drops_and_keeps_the_best_by_nats_a_byte(tmp_path, other):
    other = [*other, "preflight=true", "regime.rollouts=8", "regime.minibatch_size=4", "regime.max_steps=4"]
    whole = train(tmp_path / "whole", other)
    with pytest.raises(Killed):
        train(tmp_path / "cut", other, kill_after=1)
    resumed = train(tmp_path / "cut", other, resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    made = [row for row in rows(tmp_path / "whole") if "rollout/length" in row]
    assert any(0 < float(row["rollout/dropped"]) < 1 for row in made)
    figures = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    kl = {name: value for name, value in figures.items() if "reverse_kl" in name}
    assert {"val/reverse_kl_per_byte_raw", "val/reverse_kl_per_byte", "best/reverse_kl_per_byte"} <= kl.keys()
    assert not any(name.startswith("val/reverse_kl_raw") for name in kl) and 0 <= figures["val/dropped"] <= 1
    assert figures["best/reverse_kl_per_byte"] <= figures["val/reverse_kl_per_byte_raw"]
    page = (tmp_path / "whole" / "preflight.md").read_text()
    assert "not measured: student and teacher have other tokens" in page and "separate: texts are compared" in page
    samples = (tmp_path / "whole" / "samples" / "step_4.jsonl").read_text()
    assert "spans_kl" in samples


def test_fine_tuning_is_measured_by_such_a_teacher_too(tmp_path, other, supervised):
    models = [each for each in other if each.startswith("model.")]
    run = train(tmp_path / "run", [*supervised, *models, "model.tokenizers=separate", "objective=sft",
                                   "callbacks.checkpoints.monitor=reverse_kl_per_byte"])  # fmt: skip
    assert any("val/reverse_kl_per_byte" in row for row in run.trainer.loggers[0].rows)


def test_a_rollout_of_which_nothing_is_left_ends_the_run(tmp_path, other, world):
    tokenizer = byte_pairs([], ["<end>"], letters="xĠĊ", template=few_letters().chat_template)  # knows few letters
    make_model(vocabulary=len(tokenizer), seed=1, dtype=torch.float32).save_pretrained(tmp_path / "poor")
    tokenizer.save_pretrained(tmp_path / "poor")
    with pytest.raises(ModelError, match=r"rollout \d: none of its 4 answers can be aligned with the teacher"):
        train(tmp_path / "run", [*other, f"model.teacher={tmp_path}/poor", "callbacks.validation.every=null"])


def test_from_python(world, other):
    pair = minillm.load_pair(world / "pairs", world / "bytes", device="cpu", tokenizers="separate")
    texts = minillm.generate(pair, ["a cat", "the dog"], of="teacher", max_new_tokens=4)
    assert len(texts) == 2 == len(minillm.generate(pair, ["a cat", "the dog"], max_new_tokens=4))
    with pytest.raises(ConfigError, match="alpha=0.2, temperature=1.0 with tokenizers=separate; wanted 0 and 1"):
        next(minillm.rollouts(pair, ["a cat"], sampler=minillm.Sampler()))
    with pytest.raises(ConfigError, match=r"data.on_policy=0.5, data.replay=0.2: a rollout has new answers only"):
        next(minillm.rollouts(pair, ["a cat"], data={"on_policy": 0.5, "replay": 0.2}))
    assert len(next(minillm.rollouts(pair, ["a cat"], size=2))) == 2  # drawn by the student alone
    rollout = next(minillm.rollouts(pair, ["a cat", "the dog"], size=4, sampler=minillm.Sampler(0.0, max_new_tokens=5)))
    with pytest.raises(ConfigError, match="MiniLLM with tokenizers=separate"):
        minillm.backward(pair, rollout)
    loss = minillm.backward(pair, rollout, minillm.SpanReverseKL())
    assert {"loss", "advantage"} <= loss.keys() and any(each.grad is not None for each in pair.student.parameters())
