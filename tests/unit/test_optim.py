"""Schedules by closed form; a non-finite gradient leaves the weights alone."""

import math

import numpy as np
import pytest
import torch

from minillm.common.errors import ConfigError
from minillm.train.optim import Optim, without_decay
from minillm.train.start import SupervisedStart
from tests.tiny import make_model


def test_warm_up_then_constant_linear_or_cosine():
    for schedule, half in (
        ("constant", 1.0),
        ("linear", 0.55),
        ("cosine", 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))),
    ):
        optim = Optim(learning_rate=1.0, warmup_steps=4, schedule=schedule, min_learning_rate=0.1)
        assert [optim.rate(step, 24) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
        assert optim.rate(14, 24) == pytest.approx(half)
    assert optim.rate(24, 24) == pytest.approx(0.1)


def test_the_start_warms_up_and_decays_to_zero():
    start = SupervisedStart(steps=10, learning_rate=1.0, warmup_steps=2)
    assert [start.rate(step) for step in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert start.rate(10) == 0


def test_all_bad_values_come_in_one_error():
    with pytest.raises(ConfigError) as caught:
        Optim(
            learning_rate=0, betas=(0.9, 1.0), eps=0, weight_decay=-1, grad_clip=0, warmup_steps=-1, min_learning_rate=2
        )
    assert len(caught.value.problems) == 7


def test_the_gradient_is_clipped_to_its_global_norm():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    optim = Optim(grad_clip=1.0)
    norm = optim.norm(optimizer)
    assert norm.item() == pytest.approx(5.0) and (a.grad.item(), b.grad.item()) == (3.0, 4.0)
    optim.step(optimizer, norm, 1.0)
    assert (a.item(), b.item()) == pytest.approx((-0.6, -0.8))


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_is_that_of_the_closed_form(schedule, warmup):
    optim = Optim(learning_rate=0.3, warmup_steps=warmup, schedule=schedule, min_learning_rate=0.06)
    for step in range(30):
        done = np.interp(step, [warmup, 25], [0, 1])
        late = {
            "constant": 0.3,
            "linear": np.interp(step, [warmup, 25], [0.3, 0.06]),
            "cosine": 0.06 + 0.24 * math.cos(math.pi * done / 2) ** 2,  # half-angle form
        }
        wanted = 0.3 * (step + 1) / warmup if step < warmup else late[schedule]
        assert optim.rate(step, 25) == pytest.approx(wanted, rel=1e-12, abs=1e-15), step


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"learning_rate": 0}, "learning_rate=0: wanted a number above 0"),
        ({"betas": (0.9,)}, "betas=[0.9]: wanted two numbers in [0, 1)"),
        ({"betas": [-0.1, 0.9]}, "betas=[-0.1, 0.9]: wanted two numbers in [0, 1)"),
        ({"eps": 0}, "eps=0: wanted a number above 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: wanted 0 or more"),
        ({"grad_clip": 0}, "grad_clip=0: wanted a norm above 0, or null"),
        ({"warmup_steps": -1}, "warmup_steps=-1: wanted 0 or more"),
        ({"skip_limit": 0}, "skip_limit=0: wanted a positive number of optimizer steps"),
        ({"min_learning_rate": 1.0}, "min_learning_rate=1.0: wanted 0 to learning_rate=5e-06"),
    ],
)
def test_a_bad_value_is_one_problem(settings, problem):
    with pytest.raises(ConfigError) as caught:
        Optim(**settings)
    assert caught.value.problems == [problem]


def test_the_first_update_is_adamws_by_hand_and_gradients_are_cleared():
    optim = Optim(learning_rate=1.0, weight_decay=0.1, eps=1e-3, grad_clip=None)
    parameter = torch.nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    optimizer = optim.build([parameter])
    parameter.grad = torch.tensor([6.0, -8.0], dtype=torch.float64)
    norm = optim.norm(optimizer)
    assert norm.item() == pytest.approx(10.0)
    optim.step(optimizer, norm, 0.01)
    wanted = [2 * (1 - 0.001) - 0.01 * 6 / 6.001, -3 * (1 - 0.001) + 0.01 * 8 / 8.001]
    assert parameter.tolist() == pytest.approx(wanted, rel=1e-12)
    assert parameter.grad is None and optimizer.param_groups[0]["lr"] == 0.01


class Experts(torch.nn.Module):
    """Biases stacked over 3 experts, as in gpt-oss; a norm of 4 heads, as in Cohere's models."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.ones(3, 4, 5))
        self.gate_up_proj_bias = torch.nn.Parameter(torch.ones(3, 5))
        self.q_norm = type("HeadNorm", (torch.nn.LayerNorm,), {})((4, 5))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "qwen3"])
def test_of_a_model_all_but_biases_and_norms_is_decayed(family):
    model = make_model(family)
    model.experts = Experts()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optim = Optim(learning_rate=1.0, weight_decay=0.1)
    optimizer = optim.build(model.parameters(), exempt=without_decay(model))
    for each in model.parameters():
        each.grad = torch.zeros_like(each)  # decay alone moves weights
    optim.step(optimizer, torch.tensor(0.0), 0.5)
    for name, each in model.named_parameters():
        kept = name.endswith("bias") or "norm" in name or ".ln_" in name  # GPT-2's norms are called ln_
        torch.testing.assert_close(each, before[name] * (1 if kept else 0.95), msg=name)
    assert any(name.endswith("bias") for name in before) and any("embed" in name or "wte" in name for name in before)
