"""A check for an objective of one's own: the loss in chunks against the plain one, value and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.common.types import Rollout
from minillm.models import Head
from minillm.objectives import Objective
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import prepared


def check_objective(objective: Objective, *, seed: int = 0, close: float = 1e-10) -> None:
    """On random answers in float64: the loss and its gradient do not depend on how tokens are split into chunks, the
    teacher gets no gradient, and the gradient is that of finite differences.

    Raises:
        AssertionError: one of these does not hold, with what was found.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, length, width, vocabulary = 3, 5, 4, 11
    hidden, weight = random(rows * length, width), random(vocabulary, width)
    teacher = Side(random(rows * length, width), Head(random(vocabulary, width).requires_grad_()))
    ids = torch.randint(vocabulary, (rows, length), generator=generator)
    constants = {}
    if "on_policy" in objective.regimes:
        values = [-random(rows, length).abs() for _ in range(3)]
        names = ("student_logprobs_BR", "teacher_logprobs_BR", "behaviour_logprobs_BR")
        whole = torch.ones(rows, length, dtype=torch.bool)
        rollout = Rollout(
            ids,
            whole,
            ids,
            whole,
            **dict(zip(names, values, strict=True)),
            costs_BR=random(rows, length).abs(),
            start_logprobs_BR=-random(rows, length).abs(),
            given_B=torch.tensor([False, True, False]),
        )
        constants = {name: each.flatten() for name, each in prepared(rollout, objective).constants.items()}

    def loss_and_gradient(linear_loss: LinearLoss, shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        leaves = [(hidden + shift).requires_grad_(), weight.clone().requires_grad_()]
        student = Side(leaves[0], Head(leaves[1]))
        loss = linear_loss(objective, student, teacher, ids.flatten(), constants, normaliser=7).loss
        loss.backward()
        return loss.detach(), *(each.grad for each in leaves)

    plain = loss_and_gradient(LinearLoss(None))
    for chunk in (1, 4, 100):
        chunked = loss_and_gradient(LinearLoss(chunk * vocabulary * 8 / 2**20 * 1.001))
        for what, one, other in zip(("loss", "gradient", "gradient"), plain, chunked, strict=True):
            error = float((one - other).abs().max())
            assert error <= close, f"{what}: chunks of {chunk} tokens give another one, apart by {error:.2g}"
    assert teacher.head.weight_VH.grad is None, "the teacher gets a gradient; wanted the student's alone"
    direction, step = random(*hidden.shape), 1e-6
    ahead, behind = (loss_and_gradient(LinearLoss(None), sign * step * direction)[0] for sign in (1, -1))
    found, wanted = float((plain[1] * direction).sum()), float((ahead - behind) / (2 * step))
    assert abs(found - wanted) <= 1e-5 * max(1.0, abs(wanted)), (
        f"gradient: {found:.6g} along a direction, by finite differences {wanted:.6g}; is a part of the loss detached?"
    )
