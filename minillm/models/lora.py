"""The config group `lora`: low-rank adapters (arXiv 2106.09685) on a frozen student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm.common.errors import check

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lora:
    """W x becomes W x + alpha / rank B A x, with A and B trained and all else frozen.

    `target_modules` are names of linear layers of the body, or ends of their paths; None takes all of them. The head
    stays as it is: losses are computed from its plain weight.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self):
        check(
            (self.rank > 0, f"rank={self.rank}: wanted a positive number of columns"),
            (self.alpha > 0, f"alpha={self.alpha}: wanted a number above 0"),
            (self.dropout == 0, f"dropout={self.dropout}: wanted 0, so that rollout and update are of one model"),
            (self.target_modules != [], "target_modules=[]: wanted names of linear layers, or null for all"),
        )

    def onto(self, network: PreTrainedModel, *, base: str, seed: int = 0) -> None:
        """Change the network in place: its class stays, A is drawn from `seed`, B is 0. `base` is how the saved adapter
        names what it belongs to. Adapters are float32 where the weights are of a half type.

        Raises:
            ConfigError: a target is not a linear layer of the body.
        """
        from minillm.models.adapter import inject

        inject(network, self, base=base, seed=seed)
