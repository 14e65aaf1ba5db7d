"""The functions of `minillm`, as a notebook would use them, against the commands."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import minillm
from examples import loop
from minillm.common.errors import ConfigError
from minillm.models import Checkpoint
from minillm.models.adapter import save_adapter
from minillm.objectives import JensenShannon, TopK
from tests.integration.test_resume import rows, train

SMALL = dict(rollouts=4, minibatch_size=2, microbatch_tokens=64, inner_epochs=1)
PROMPTS = [{"instruction": f"write {word} dog"} for word in ("red", "big", "small", "cat", "one", "two")]


def load(world, **options):
    return minillm.load_pair(world / "student", world / "teacher", **{"dtype": "float32"} | options)


def same(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_package_is_imported_without_torch():
    code = "import minillm, sys; assert 'torch' not in sys.modules; assert 'distill' in dir(minillm)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.quick
def test_distill_makes_the_run_of_the_command(tmp_path, world, overrides):
    command = train(tmp_path / "command", [*overrides, "callbacks.record.export=last"])
    pair = load(world)
    run = minillm.distill(
        pair,
        world / "train.jsonl",
        steps=6,
        regime=minillm.OnPolicy(**SMALL),
        sampler=minillm.Sampler(max_new_tokens=6),
        optim=minillm.Optim(learning_rate=1e-3, warmup_steps=2),
        corpus=world / "corpus.txt",
        regulariser=minillm.PretrainLoss(batch_size=3),
        start=minillm.SupervisedStart(steps=2, minibatch_size=2, learning_rate=1e-3),
        validation=world / "val.jsonl",
        data={"block_size": 8},
        validate_every=2,
        run_dir=tmp_path / "api",
    )
    assert same(command.module.student.state_dict(), pair.student.state_dict())
    assert rows(tmp_path / "api") == rows(tmp_path / "command")
    figures = json.loads((tmp_path / "command" / "metrics.json").read_text())
    kept = {name: value for name, value in figures.items() if name != "wall_seconds"}
    assert kept.items() <= run.metrics.items() and run.run_dir == tmp_path / "api"
    assert run.history[-2]["progress/round"] == 4 and "val/reverse_kl" in run.history[-1]
    assert (tmp_path / "api" / "student" / "config.json").exists()


def test_a_run_without_a_directory_leaves_the_student_in_memory_only(tmp_path, world, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = load(world)
    before = {name: value.clone() for name, value in pair.student.state_dict().items()}
    run = minillm.distill(
        pair, PROMPTS, steps=1, regime=minillm.OnPolicy(**SMALL), sampler=minillm.Sampler(max_new_tokens=4),
        optim=minillm.Optim(learning_rate=1e-2, warmup_steps=0),
    )  # fmt: skip
    assert run.pair is pair and not same(before, pair.student.state_dict()) and not list(tmp_path.iterdir())
    assert run.run_dir is None and run.metrics["steps"] == 1 and run.metrics["val/reverse_kl"] > 0
    run.student.save_pretrained("out")
    assert same(AutoModelForCausalLM.from_pretrained("out").state_dict(), pair.student.state_dict())
    assert AutoTokenizer.from_pretrained("out").get_vocab() == pair.tokenizer.get_vocab()
    file, options = str(world / "val.jsonl"), dict(seeds=[1], max_new_tokens=4)
    found = minillm.evaluate(["out"], teacher=pair.teacher, files=[file], **options)
    mine = minillm.evaluate([run], teacher=pair, files=[file], run_dir="measured", **options)
    (place,) = mine["answers"]["plain"][file]
    assert place.startswith("measured/models/")
    units = sorted(each.stat().st_mtime_ns for each in (tmp_path / "measured" / "units").iterdir())
    assert minillm.evaluate([run], teacher=pair, files=[file], run_dir="measured", **options) == mine
    assert units == sorted(each.stat().st_mtime_ns for each in (tmp_path / "measured" / "units").iterdir())
    (kl,), (other,) = (
        [model["figures"]["reverse_kl"]["mean"] for model in each["answers"]["plain"][file].values()]
        for each in (found, mine)
    )
    assert kl == pytest.approx(other) and kl > 0


@pytest.mark.parametrize("own", [{}, {"lora": minillm.Lora(rank=2)}], ids=["whole", "adapters"])
def test_a_run_that_was_cut_goes_on(tmp_path, world, own):
    """Also with the pair that the first part has trained."""
    options = dict(
        regime=minillm.OnPolicy(**SMALL), sampler=minillm.Sampler(max_new_tokens=4), save_every=2, preflight=False,
        optim=minillm.Optim(learning_rate=1e-3, warmup_steps=0),
    )  # fmt: skip
    whole, first, last = (load(world, **own) for _ in range(3))
    minillm.distill(whole, PROMPTS, steps=4, run_dir=tmp_path / "whole", **options)
    minillm.distill(first, PROMPTS, steps=2, run_dir=tmp_path / "cut", **options)
    minillm.distill(last, PROMPTS, steps=4, run_dir=tmp_path / "cut", resume=True, **options)
    assert same(whole.student.state_dict(), last.student.state_dict())
    minillm.distill(first, PROMPTS, steps=4, run_dir=tmp_path / "cut", resume=True, **options)
    assert same(whole.student.state_dict(), first.student.state_dict())


def test_the_teachers_answers_are_rows_to_fine_tune_on(world):
    pair = load(world)
    answers = minillm.generate(pair, PROMPTS, of="teacher", max_new_tokens=5, seed=None)
    assert [row["instruction"] for row in answers] == [row["instruction"] for row in PROMPTS]
    run = minillm.finetune(
        pair, answers, steps=2, regime=minillm.Supervised(minibatch_size=2, microbatch_size=2), preflight=False,
        objective=minillm.CrossEntropy(kd_ratio=0.5), data={"max_response_tokens": 8},
    )  # fmt: skip
    assert run.metrics["steps"] == 2 and "train/soft_cross_entropy" in run.history[-2]  # before its validation


def test_ones_own_loop_takes_the_steps_of_distill(world, capsys):
    trained = loop.main(str(world / "student"), str(world / "teacher"), str(world / "train.jsonl"), 3, 1e-3)
    assert capsys.readouterr().out.count("reverse KL") == 3
    pair = load(world)
    minillm.distill(
        pair, world / "train.jsonl", steps=3, validation=world / "val.jsonl", preflight=False,
        regime=minillm.OnPolicy(rollouts=16, minibatch_size=16, inner_epochs=1),
        sampler=minillm.Sampler(max_new_tokens=64),
        optim=minillm.Optim(learning_rate=1e-3, warmup_steps=0, weight_decay=0),
    )  # fmt: skip
    mine, theirs = trained.student.state_dict(), pair.student.state_dict()
    start = AutoModelForCausalLM.from_pretrained(world / "student").state_dict()
    for name in mine:
        assert (mine[name] - theirs[name]).abs().max() < 1e-5 < (mine[name] - start[name]).abs().max()


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path, world):
    pair = load(world)
    with pytest.raises(ConfigError, match="has no teacher"):
        minillm.distill(minillm.load_pair(world / "student"), PROMPTS)
    with pytest.raises(ConfigError, match="export=best: needs a run_dir"):
        minillm.distill(pair, PROMPTS, export="best")
    with pytest.raises(ConfigError, match="minibatch_size=64 does not divide|rollouts"):
        minillm.distill(pair, PROMPTS, regime=minillm.OnPolicy(rollouts=5))
    with pytest.raises(ConfigError, match=r"(?s)train_file=a\.jsonl: no such.*corpus_file=c\.txt: no such"):
        minillm.distill(pair, "a.jsonl", corpus="c.txt")
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        minillm.distil  # noqa: B018


def test_an_objective_that_divides_by_micro_batches_does_so_in_ones_own_loop(world):
    pair = load(world)
    rollout = next(minillm.rollouts(pair, world / "train.jsonl", size=8, sampler=minillm.Sampler(max_new_tokens=5)))
    tokens, local = (minillm.MiniLLM(denominator=name) for name in ("tokens", "micro_batch"))
    three = 3 * rollout.ids_BS.shape[1]  # rows a micro-batch: 3, 3 and 2
    whole = [minillm.backward(pair, rollout, each)["loss"] for each in (tokens, local)]
    parts = [minillm.backward(pair, rollout, each, max_tokens=three)["loss"] for each in (tokens, local)]
    assert whole[0] == pytest.approx(whole[1], abs=1e-6) and parts[0] == pytest.approx(whole[0], abs=1e-6)
    assert abs(parts[1] - whole[1]) > 1e-5


def test_a_teacher_that_is_nowhere_cannot_be_named(tmp_path, world):
    """A moving average, or a model that an adapter has changed."""
    adapted = minillm.load_pair(world / "teacher", lora=minillm.Lora(rank=2), dtype="float32")
    save_adapter(adapted.student, tmp_path / "adapter")
    teacher = Checkpoint(str(world / "teacher"), adapter=str(tmp_path / "adapter"))
    for pair in (minillm.load_pair(world / "student", "ema"), minillm.load_pair(world / "student", teacher)):
        for each in (pair, pair.teacher):
            with pytest.raises(ConfigError, match="teacher: is not one model that was loaded from"):
                minillm.evaluate([pair], teacher=each)


def test_a_refused_evaluation_leaves_nothing(tmp_path, world, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nowhere.jsonl"):
        minillm.evaluate([load(world)], files=["nowhere.jsonl"], run_dir="measured")
    assert not list(tmp_path.iterdir())


def test_several_steps_on_one_rollout(world):
    """With what the objective computes of it once, also where that takes a pass of the student."""
    pair = load(world)
    rollout = next(minillm.rollouts(pair, PROMPTS, size=4, sampler=minillm.Sampler(max_new_tokens=5)))
    for objective in (minillm.MiniLLM(), JensenShannon(long_part=True)):
        ready = minillm.prepare(pair, rollout, objective)
        assert minillm.backward(pair, rollout, objective) == minillm.backward(pair, ready, objective)


def test_activations_are_recomputed_in_ones_own_loop(world):
    pair, passes = load(world, gradient_checkpointing=True), []
    rollout = next(minillm.rollouts(pair, PROMPTS, size=4, sampler=minillm.Sampler(max_new_tokens=5)))
    pair.student.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1))
    before = minillm.backward(load(world), rollout), pair.student.training
    assert (minillm.backward(pair, rollout), pair.student.training) == before and len(passes) == 2


def test_what_the_teacher_cannot_give_is_refused_in_ones_own_loop(world):
    pair = load(world)
    rollout = next(minillm.rollouts(pair, PROMPTS, size=4, sampler=minillm.Sampler(max_new_tokens=5)))
    with pytest.raises(ConfigError, match="SpanReverseKL with tokenizers=shared"):
        minillm.backward(pair, rollout, minillm.SpanReverseKL())
    pair.teacher.exact, pair.teacher.k = False, 3  # as that of a vLLM server
    for objective in (minillm.MiniLLM(), TopK(k=5)):
        with pytest.raises(ConfigError, match="with a vLLM teacher that lists 3 tokens"):
            minillm.backward(pair, rollout, objective)
    minillm.prepare(pair, rollout, TopK(k=3))


def test_a_sampler_of_ones_own_needs_no_mark_of_edges(tmp_path, world, overrides):
    class Plain(minillm.Sampler):
        def rollout(self, *arguments, **options):
            return replace(super().rollout(*arguments, **options), near_edge_BR=None)

    options = dict(steps=2, regime=minillm.OnPolicy(**SMALL), validation=PROMPTS[:2])
    figures = [minillm.distill(load(world), PROMPTS, sampler=kind(max_new_tokens=5), **options).history
               for kind in (minillm.Sampler, Plain)]  # fmt: skip
    assert figures[0][1].keys() - figures[1][1].keys() == {"rollout/near_edge"}
    assert figures[0][1]["train/loss"] == figures[1][1]["train/loss"]
