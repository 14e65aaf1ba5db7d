"""Runs in which not all answers are drawn now: they resume bit for bit, and several processes agree."""

import pytest
import torch

from minillm.common.errors import ConfigError
from tests.integration.test_resume import Killed, rows, train

GIVEN = ["data.on_policy=0.75", "data.max_response_tokens=4"]


def short(record, answer):
    return float(len(answer.split()) < 3)


def broken(record, answer):
    raise ValueError(f"{record.instruction}?")


def test_a_run_with_all_of_it_learns_and_resumes(tmp_path, overrides):
    ours = [f"reward.function={__name__}.short", "reward.weight=20", "sampler.answers_per_prompt=4", *GIVEN]
    sizes = ["start.steps=0", "regime.rollouts=16", "regime.minibatch_size=16", "regime.max_steps=24"]
    sizes += ["optim.learning_rate=3e-3", "callbacks.validation.every=null", "callbacks.checkpoints.every=8"]
    overrides = [*overrides, *ours, *sizes, "data.replay=0.25", "data.replay_size=2"]
    whole = train(tmp_path / "whole", overrides)
    with pytest.raises(Killed):
        train(tmp_path / "cut", overrides, kill_after=13)
    resumed = train(tmp_path / "cut", overrides, resume="auto")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    made = [row for row in rows(tmp_path / "whole") if "train/reward" in row]
    assert len(made) == 24 and {row["rollout/given"] for row in made} == {"0.25"}
    rewards = [float(row["train/reward"]) for row in made]
    assert sum(rewards[-6:]) > 2 * sum(rewards[:6])
    prompts = [each.records_B.view(-1, 4) for each in whole.module.stored.earlier]
    assert len(prompts) == 2 and all((each == each[:, :1]).all() for each in prompts)  # four answers to each


def test_a_reward_that_fails_ends_the_run_with_one_message(tmp_path, overrides):
    ours = [f"reward.function={__name__}.broken", "sampler.answers_per_prompt=2", "start.steps=0"]
    with pytest.raises(ConfigError, match=r"broken raised ValueError: .*\? for the answer .*train.jsonl:\d+; wanted a"):
        train(tmp_path / "run", [*overrides, *ours])


def test_prompts_without_answers_are_one_message(tmp_path, overrides, world):
    file = tmp_path / "bare.jsonl"
    file.write_text((world / "train.jsonl").read_text().replace('"output"', '"other"'))
    with pytest.raises(ConfigError, match=r"data.on_policy=0.75: not every training prompt has a reference"):
        train(tmp_path / "run", [*overrides, *GIVEN, f"data.train_file={file}"])
