"""Runs with a teacher on a vLLM server: those of the same teacher in process, as far as its lists reach. And runs whose
answers a vLLM server draws."""

import csv
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError, Interrupted
from tests.integration.test_resume import train
from tests.vllm_server import serving

# The tiny teacher's 31 tokens are all listed, but for the lists of 5.
TOP_K = ["objective=topk", "objective.k=5", "regulariser=none", "sampler.alpha=0", "start.steps=0"]


@pytest.fixture
def options(world, overrides):
    absent = ("model.student=", "model.teacher=", "regulariser.", "start.", "data.corpus_file", "callbacks.check")
    kept = [key for key in overrides if not key.startswith(absent)]
    models = ["model=own", f"model.student.source={world}/student", f"model.teacher.source={world}/teacher"]
    return [*models, *kept, *TOP_K, "callbacks.record.export=last", "model.teacher.patience=1"]


@pytest.fixture
def teacher(world):
    return AutoModelForCausalLM.from_pretrained(world / "teacher")


def on_vllm(url):
    return [f"model.teacher.url={url}", "model.teacher.protocol=vllm"]


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.quick
def test_a_run_equals_one_with_the_teacher_here(tmp_path, options, teacher):
    """Its validation has the KL of the sampled tokens, and no exact one; the page before the first step too."""
    here = train(tmp_path / "here", options)
    with serving(teacher) as (_, url):
        there = train(tmp_path / "there", [*options, *on_vllm(url), "preflight=true"])
    mine, theirs = there.module.state_dict(), here.module.state_dict()
    assert all((mine[name] - theirs[name]).abs().max() < 2e-4 for name in theirs)
    listed, exact = figures(tmp_path / "there"), figures(tmp_path / "here")
    assert listed["val/reverse_kl_sampled"] > 0 and "val/reverse_kl" in exact
    assert not {"val/reverse_kl", "val/teacher_entropy", "val/overlap"} & listed.keys()
    assert "nats a token" not in (tmp_path / "there" / "preflight.md").read_text()  # no KL that it cannot know
    with (tmp_path / "there" / "metrics.csv").open() as file:
        assert any(row.get("train/divergence") for row in csv.DictReader(file))


def test_the_best_by_the_sampled_kl(tmp_path, options, teacher):
    best = ["callbacks.record.export=best", "callbacks.checkpoints.monitor="]
    with serving(teacher) as (_, url):
        run = train(tmp_path / "run", [*options, *on_vllm(url), best[0], f"{best[1]}reverse_kl_sampled"])
        with pytest.raises(ConfigError, match="validation of this run measures .*reverse_kl_sampled; "):
            train(tmp_path / "other", [*options, *on_vllm(url), best[0], f"{best[1]}reverse_kl"])
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists() and run.module.step == 6


def test_given_answers(tmp_path, options, teacher):
    """Of the data in a rollout, and in the supervised regime."""
    supervised = ["regime=supervised", "regime.epochs=null", "regime.max_steps=2", "regime.minibatch_size=4"]
    for more in (["data.on_policy=0.5"], supervised):
        more = [*more, "data.max_tokens=400"]
        kept = [key for key in options if len(more) == 2 or not key.startswith("regime.")]
        with serving(teacher) as (fake, url):
            train(tmp_path / str(len(more)), [*kept, *more, *on_vllm(url)])
        assert any("prompt_logprobs" in body for path, body in fake.requests)


def test_a_server_that_dies_and_the_run_that_goes_on(tmp_path, options, teacher):
    whole = train(tmp_path / "whole", options)
    with serving(teacher) as (fake, url):
        fake.dies_after = 8  # in the second rollout
        with pytest.raises(Interrupted, match="the teacher's server http"):
            train(tmp_path / "cut", [*options, *on_vllm(url)])
    with serving(teacher) as (_, url):
        resumed = train(tmp_path / "cut", [*options, *on_vllm(url)], resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all((mine[name] - theirs[name]).abs().max() < 2e-4 for name in theirs)


def test_what_lists_cannot_serve_is_refused_at_once(tmp_path, options):
    wrong = [
        "objective=sampled_baseline", "sampler.alpha=0.2", "sampler.temperature=0.5", "data.teacher_cache=x",
        "regulariser=pretrain", "regulariser.kd_ratio=0.5", "data.corpus_file=x",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, [*(key for key in options if key != "objective.k=5"), *on_vllm("http://localhost:1"), *wrong])
    text = str(caught.value)
    assert "objective SampledBaseline with model.teacher.protocol=vllm: needs the whole distribution" in text
    assert "sampler.alpha=0.2 with" in text
    assert "wanted start.kd_ratio=0, regulariser.kd_ratio=0, sampler.temperature=1 and data.teacher_cache=null" in text
    with pytest.raises(ConfigError, match="objective TopK with model.teacher.protocol=vllm"):
        train(tmp_path, [*options, *on_vllm("http://localhost:1"), "objective.of=both"])


@pytest.fixture
def drawn(world, overrides):
    """A run whose answers a server draws, which begins with other weights than the student's; and that server."""
    kept = [key for key in overrides if not key.startswith(("start.", "callbacks.checkpoints.monitor"))]
    more = [
        "sampler=vllm",
        "start.steps=0",
        "sampler.patience=1",
        "callbacks.record.export=last",
        "sampler.batch_size=4",
    ]
    network = AutoModelForCausalLM.from_pretrained(world / "student")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return [*kept, *more], network


def logged(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


MIXED = ["data.on_policy=0.75", "data.replay=0.25"]


@pytest.mark.quick
@pytest.mark.parametrize("more", [[], pytest.param(MIXED, marks=pytest.mark.slow)], ids=["alone", "mixed"])
def test_a_server_that_draws_the_answers(tmp_path, drawn, more):
    """Of the weights of each rollout: the mismatch is rounding, also after updates, and beside stored answers."""
    options, network = drawn
    with serving(network) as (fake, url):
        run = train(tmp_path / "run", [*options, *more, f"sampler.url={url}"])
    assert run.module.step == 6 and len([path for path, _ in fake.requests if path == "/collective_rpc"]) == 3
    mismatch = logged(tmp_path / "run", "rollout/log_ratio_server_max")
    assert len(mismatch) == 3 and max(mismatch) < 1e-5
    assert max(logged(tmp_path / "run", "rollout/weights_cut")) == 0
    assert max(logged(tmp_path / "run", "rollout/log_ratio_first_step_max")) < 1e-5


def test_a_server_of_answers_that_dies(tmp_path, drawn):
    """The run saves, ends with status 75, and goes on: each round has the seeds of its number."""
    options, network = drawn
    with serving(network) as (_, url):
        whole = train(tmp_path / "whole", [*options, f"sampler.url={url}"])
    with serving(network) as (fake, url):
        fake.dies_after = 10  # in the second rollout
        with pytest.raises(Interrupted, match="the sampler's server http") as caught:
            train(tmp_path / "cut", [*options, f"sampler.url={url}"])
    assert caught.value.status == 75
    with serving(network) as (_, url):
        resumed = train(tmp_path / "cut", [*options, f"sampler.url={url}"], resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_sampler_for_one_process(tmp_path, drawn):
    with pytest.raises(ConfigError, match="strategy=ddp with sampler VllmSampler: works in one process"):
        train(tmp_path, [*drawn[0], "strategy=ddp", "strategy.devices=2"])
