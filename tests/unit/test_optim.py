"""Schedules by closed form; a non-finite gradient leaves the weights alone."""

import math

import pytest
import torch

from minillm.errors import ConfigError, NonFiniteError
from minillm.modules import SupervisedStart
from minillm.optim import Optim


def test_warm_up_then_constant_linear_or_cosine():
    for schedule, half in (("constant", 1.0), ("linear", 0.55), ("cosine", 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))):
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
        Optim(learning_rate=0, betas=(0.9, 1.0), eps=0, weight_decay=-1, grad_clip=0, warmup_steps=-1, min_learning_rate=2)
    assert len(caught.value.problems) == 7


def test_the_gradient_is_clipped_to_its_global_norm():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    assert Optim(grad_clip=1.0).step(optimizer, [a, b], 1.0).item() == pytest.approx(5.0)
    assert (a.item(), b.item()) == pytest.approx((-0.6, -0.8))


def test_a_non_finite_gradient_stops_before_the_update():
    optim = Optim()
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.build([parameter])
    parameter.grad = torch.tensor([1.0, math.nan, 1.0])
    with pytest.raises(NonFiniteError, match="gradient norm is nan; the update was not made"):
        optim.step(optimizer, [parameter], 1e-3)
    assert parameter.tolist() == [1.0, 1.0, 1.0]
