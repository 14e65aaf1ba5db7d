"""The config group `optim`: AdamW, its learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minillm.common.errors import check
from minillm.common.lazy import lazy

if TYPE_CHECKING:
    from torch import nn

torch, gradients = lazy("torch"), lazy("minillm.parallel.gradients")


@dataclass(frozen=True)
class Optim:
    """Steps count optimizer steps over all devices. Values of the published runs: conf/optim/adamw.yaml.

    on_nonfinite: `abort` the run at a loss or gradient that is not finite, or `skip` the step, at most `skip_limit` - 1
    of them in a row.
    """

    learning_rate: float = 5e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-6
    grad_clip: float | None = 1.0
    warmup_steps: int = 100
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_learning_rate: float = 0.0
    on_nonfinite: Literal["abort", "skip"] = "abort"
    skip_limit: int = 5

    def __post_init__(self):
        check(
            (self.learning_rate > 0, f"learning_rate={self.learning_rate}: wanted a number above 0"),
            (
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                f"betas={list(self.betas)}: wanted two numbers in [0, 1)",
            ),
            (self.eps > 0, f"eps={self.eps}: wanted a number above 0"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay}: wanted 0 or more"),
            (
                self.grad_clip is None or self.grad_clip > 0,
                f"grad_clip={self.grad_clip}: wanted a norm above 0, or null",
            ),
            (self.skip_limit > 0, f"skip_limit={self.skip_limit}: wanted a positive number of optimizer steps"),
            (self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps}: wanted 0 or more"),
            (
                0 <= self.min_learning_rate <= self.learning_rate,
                f"min_learning_rate={self.min_learning_rate}: wanted 0 to learning_rate={self.learning_rate}",
            ),
        )

    def build(
        self, parameters: Iterable[nn.Parameter], exempt: Collection[nn.Parameter] = frozenset()
    ) -> torch.optim.AdamW:
        """For `parameters`, of which those that are `exempt` too are not decayed, see `without_decay`."""
        parameters = list(parameters)
        groups = [
            {"params": group, gradients.DECAYED: decayed, "weight_decay": self.weight_decay if decayed else 0.0}
            for decayed in (True, False)
            for group in gradients.by_mesh(each for each in parameters if (each not in exempt) == decayed)
        ]
        return torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=tuple(self.betas),
            eps=self.eps,
            fused=True,
        )

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the 0-based `step` of `total`: linear warm-up, then constant or decay to the minimum."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        span = self.learning_rate - self.min_learning_rate
        match self.schedule:
            case "linear":
                return self.min_learning_rate + span * (1 - done)
            case "cosine":
                return self.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate

    def norm(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """The global norm of the gradients, 0-d; they stay as they are."""
        return gradients.gradient_norm(_parameters(optimizer))

    def clip(self, optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> None:
        if self.grad_clip is not None:
            gradients.clip_gradients(_parameters(optimizer), self.grad_clip, norm)

    def step(self, optimizer: torch.optim.Optimizer, norm: torch.Tensor, rate: float) -> None:
        """Clip gradients of that norm, set the rate, update, clear the gradients."""
        self.clip(optimizer, norm)
        set_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()


def without_decay(network: nn.Module) -> set[nn.Parameter]:
    """Biases and norms of a network, which are not decayed: weights with one axis, biases of stacked experts (two
    axes), and norms with weights for each head (two axes)."""
    return {
        weight
        for module in network.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() < 2 or name.endswith("bias") or "norm" in type(module).__name__.lower()
    }


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
