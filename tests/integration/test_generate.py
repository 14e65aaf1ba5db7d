"""A teacher's answers on disk: stopped and started, by one process and by two, and trained on."""

import json

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

import minillm.evaluation.suite.run
import minillm.evaluation.suite.work
from minillm.common.errors import ConfigError
from minillm.common.ranks import rank, started_processes
from minillm.data import read_records
from minillm.evaluation.generation import check_generation, generate
from tests.commands import ROOT, Command, call
from tests.conf.test_compose import CONF
from tests.integration.test_resume import train


def work(world, run_dir, *options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "generate",
            [
                f"teacher={world}/teacher", f"data.file={world}/train.jsonl", "data.template=paper", "dtype=float64",
                "max_new_tokens=6", "batch_size=2", "chunk=5", f"run.dir={run_dir}", "run.name=test", *options,
            ],
        )  # fmt: skip
    return check_generation(cfg)


def answers(run_dir):
    return (run_dir / "answers.jsonl").read_text()


@pytest.mark.quick
def test_one_sampled_response_a_prompt_in_the_schema_of_training_data(tmp_path, world):
    generate(work(world, tmp_path))
    rows = list(map(json.loads, answers(tmp_path).splitlines()))
    given = list(map(json.loads, (world / "train.jsonl").read_text().splitlines()))
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in given]
    assert len({row["output"] for row in rows}) > 6 and len(list((tmp_path / "units").iterdir())) == 3
    greedy = AutoModelForCausalLM.from_pretrained(world / "teacher")
    assert greedy.config.vocab_size == 31  # the tokens of every answer are the teacher's
    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    assert all(len(tokenizer(row["output"]).input_ids) <= 6 for row in rows)
    generate(work(world, tmp_path / "other", "seed=11"))
    assert answers(tmp_path / "other") != answers(tmp_path)


def test_what_was_cut_off_is_counted_and_trained_on_without_an_end(tmp_path, world, capsys):
    generate(work(world, tmp_path, "max_new_tokens=2"))
    records = read_records(str(tmp_path / "answers.jsonl"))
    n_cut = sum(record.truncated for record in records)
    assert n_cut > 0 and f"{n_cut} of 12 answers were cut off at max_new_tokens" in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, world, monkeypatch):
    generate(work(world, tmp_path / "whole"))
    calls, real = [], minillm.evaluation.suite.work.answer_prompts

    def stop_at_the_second(*args, **kwargs):
        calls.append(kwargs["rows"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(minillm.evaluation.suite.work, "answer_prompts", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        generate(work(world, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "answers.jsonl").exists()
    generate(work(world, tmp_path / "cut"))
    assert calls == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [10, 11]]  # nothing twice but what was cut
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")
    generate(work(world, tmp_path / "cut"))
    assert len(calls) == 4


def test_two_processes_share_the_work(tmp_path, world):
    generate(work(world, tmp_path / "one"))
    options = [
        f"teacher={world}/teacher", f"data.file={world}/train.jsonl", "data.template=paper", "dtype=float64",
        "max_new_tokens=6", "batch_size=2", "chunk=5", "run.name=two",
    ]  # fmt: skip
    both = [Command("minillm.generate", *options, cwd=tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [each.wait() for each in both] == [0, 0], [each.stderr for each in both]
    assert answers(tmp_path / "runs" / "two") == answers(tmp_path / "one")


def test_each_rank_does_its_share_and_the_last_one_joins(tmp_path, world, monkeypatch):
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    for number in (0, 1):
        monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda number=number: number)
        assert generate(work(world, tmp_path)) == (tmp_path / "answers.jsonl" if number else None)
        assert len(list((tmp_path / "units").iterdir())) == 2 + number


@pytest.mark.parametrize(
    "started", [dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1"), dict(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2")]
)
def test_torchrun_and_srun_say_which_share_is_whose(tmp_path, world, monkeypatch, started):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert (rank(), started_processes()) == (1, 2)


def test_answers_are_trained_on(tmp_path, world):
    generate(work(world, tmp_path / "answers"))
    run = train(
        tmp_path / "seqkd",
        [
            f"model.student={world}/student", f"model.teacher={world}/teacher", "model.dtype=float64",
            f"data.train_file={tmp_path}/answers/answers.jsonl", f"data.val_file={world}/val.jsonl",
            "data.template=paper", "regime=supervised", "regime.minibatch_size=4", "regime.microbatch_size=2",
            "regime.epochs=2", "objective=kd", "optim=adamw_sft", "callbacks.validation.max_new_tokens=6",
        ],
    )  # fmt: skip
    assert run.module.step == 6


def test_mistakes_come_in_one_message(tmp_path, world):
    with pytest.raises(ConfigError) as caught:
        work(world, tmp_path, "chunk=0", "temperature=-1", "data.train_file=x.jsonl", "dtype=float23", "data.file=3")
    assert len(caught.value.problems) == 5
    with pytest.raises(ConfigError, match="no such file or directory"):
        work(world, tmp_path, "teacher=./nothing")
    generate(work(world, tmp_path))
    with pytest.raises(
        ConfigError, match="seed was 10, is 12 now; .* was begun with the first: choose another run.name"
    ):
        work(world, tmp_path, "seed=12")
    with pytest.raises(ConfigError) as caught:
        work(world, tmp_path, f"data.file={world}/val.jsonl")
    assert f"data.file was '{world}/train.jsonl', is '{world}/val.jsonl' now; " in str(caught.value)


def test_the_command_answers_a_mistake_with_one_message():
    done = call("minillm.generate", "taecher=x", cwd=ROOT)
    assert done.poll() == 1 and "taecher: no such key; did you mean teacher?" in done.stderr


def test_another_jobs_directory_is_left_alone(tmp_path, world):
    for text, wanted in (('{"models": []}', "already holds another run"), ("[1", "settings.json: damaged")):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ConfigError, match=wanted):
            work(world, tmp_path)
        assert (tmp_path / "settings.json").read_text() == text
