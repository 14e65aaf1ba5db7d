"""The `reference` preset against numbers of the published functions (origin: tests/golden/README.md)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors import safe_open

from minillm import losses
from minillm.common.checks import construct
from minillm.common.types import Rollout
from minillm.objectives import PretrainLoss
from minillm.rollout import prepared
from tests.helpers import ROAD_NAMES, ROADS, logits_side

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.safetensors"))
CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.fixture(params=GOLDEN, ids=lambda file: file.stem)
def case(request):
    with safe_open(request.param, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


def objective_of(config):
    """The preset as the yaml has it, with the case's settings."""
    conf = str(Path(__file__).parents[2] / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        cfg = compose("train", ["objective=reference", "run.name=golden"])
    node = OmegaConf.to_container(cfg.objective)
    names = ("gamma", "reward_scaling", "reward_clip", "length_norm", "single_step")
    node |= {name: config[name] for name in names} | {"clip": config["ppo_clip"]}
    return construct(node)


def rollout_of(tensors, config):
    return Rollout(
        prompt_ids_BP=tensors["query_ids"],
        prompt_mask_BP=tensors["query_ids"] != config["pad_id"],
        response_ids_BR=tensors["response_ids"],
        response_mask_BR=tensors["response_mask"],
        student_logprobs_BR=tensors["student_logprobs_rollout"],
        teacher_logprobs_BR=tensors["teacher_logprobs"],
        behaviour_logprobs_BR=losses.mixture_logprobs(
            tensors["student_logprobs_rollout"], tensors["teacher_logprobs"], config["teacher_mix_alpha"] or 0.0
        ),
        temperature=config["temperature"],
    )


def response_part(logits, tensors):
    n_prompt, n_response = tensors["query_ids"].shape[1], tensors["response_ids"].shape[1]
    return logits[:, n_prompt - 1 : n_prompt - 1 + n_response]


def test_log_probabilities(case):
    tensors, _ = case
    mask = tensors["response_mask"]
    for logits, logprobs in (
        ("student_logits_rollout", "student_logprobs_rollout"),
        ("teacher_logits", "teacher_logprobs"),
    ):
        got = losses.token_logprobs(response_part(tensors[logits], tensors), tensors["response_ids"])
        torch.testing.assert_close(got[mask], tensors[logprobs][mask], **CLOSE)


def test_weights_rewards_and_advantages(case):
    tensors, config = case
    mask = tensors["response_mask"]
    rollout, objective = rollout_of(tensors, config), objective_of(config)
    alpha = config["teacher_mix_alpha"] or 0.0
    weights = losses.importance_weights(rollout.student_logprobs_BR, rollout.teacher_logprobs_BR, alpha)
    torch.testing.assert_close(objective.prepare(rollout)["long_weights"][mask], weights[mask], **CLOSE)
    torch.testing.assert_close(weights[mask], tensors["importance_weights"][mask], **CLOSE)
    rewards = losses.token_rewards(
        rollout.student_logprobs_BR,
        rollout.teacher_logprobs_BR,
        mask,
        scaling=config["reward_scaling"],
        clip=config["reward_clip"],
    )
    torch.testing.assert_close(rewards[mask], tensors["rewards"][mask], **CLOSE)
    plain = losses.discounted_returns(rewards, mask, gamma=config["gamma"], length_norm=True, skip_current=False)
    torch.testing.assert_close(plain[mask], tensors["advantages_unwhitened"][mask], **CLOSE)
    torch.testing.assert_close(objective.prepare(rollout)["advantages"][mask], tensors["advantages"][mask], **CLOSE)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
def test_losses_and_their_gradient(road, case):
    tensors, config = case
    mask = tensors["response_mask"]
    objective = objective_of(config)
    experience = prepared(rollout_of(tensors, config), objective)
    student = tensors["student_logits_now"].clone().requires_grad_()
    flat = [response_part(logits, tensors)[mask] for logits in (student, tensors["teacher_logits"])]
    constants = {name: each[mask] for name, each in experience.constants.items()}
    sides = map(logits_side, flat)
    output = road(objective, *sides, tensors["response_ids"][mask], constants, normaliser=mask.sum())
    torch.testing.assert_close(output.parts["long"], tensors["pg_loss"], **CLOSE)
    torch.testing.assert_close(output.parts["single"], tensors["single_step_loss"], **CLOSE)
    torch.testing.assert_close(output.loss, tensors["rl_loss"], **CLOSE)
    output.loss.backward()
    torch.testing.assert_close(student.grad, tensors["grad_student_logits"], **CLOSE)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
def test_the_regulariser_and_its_gradient(road, case):
    tensors, config = case
    logits = tensors["lm_logits"].clone().requires_grad_()
    counted = tensors["lm_labels"] != -100
    regulariser, n_tokens = PretrainLoss(kd_ratio=config["kd_ratio"]), counted.sum()
    sides = logits_side(logits[counted]), logits_side(tensors["lm_teacher_logits"][counted])
    output = road(regulariser, *sides, tensors["lm_labels"][counted], normaliser=n_tokens)
    torch.testing.assert_close(output.parts["cross_entropy"], tensors["lm_loss"], **CLOSE)
    torch.testing.assert_close(output.parts["soft_cross_entropy"], tensors["lm_kd_loss"], **CLOSE)
    torch.testing.assert_close(output.loss, tensors["pt_loss"], **CLOSE)
    output.loss.backward()
    torch.testing.assert_close(logits.grad, tensors["grad_lm_logits"], **CLOSE)
    scaled = road(replace(regulariser, coefficient=0.3), *sides, tensors["lm_labels"][counted], normaliser=n_tokens)
    torch.testing.assert_close(scaled.loss, 0.3 * tensors["pt_loss"], **CLOSE)
