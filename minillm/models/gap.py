"""How far two passes over the same tokens are apart: in their logits, and in one direction.

Axes: N tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.losses import log_softmax


@dataclass
class LogitGap:
    """Sums over all tokens that were added. `bias`: |slope - 1| of the least-squares line of one pass's logits on the
    other's, both centred; `kl`: mean KL[other || one] in nats. Rounding leaves a small `kl` and next to no `bias`; a
    factor on the logits, or other weights of attention, show in one of them."""

    one_other: float = 0.0
    other_other: float = 0.0
    total_kl: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, one_NV: Tensor, other_NV: Tensor) -> LogitGap:
        gap = cls()
        gap.add(one_NV, other_NV)
        return gap

    @torch.no_grad()
    def add(self, one_NV: Tensor, other_NV: Tensor) -> None:
        with torch.autocast(one_NV.device.type, enabled=False):
            one_NV, other_NV = log_softmax(one_NV), log_softmax(other_NV)
            self.total_kl += float(torch.linalg.vecdot(other_NV.exp(), other_NV - one_NV).sum())
            self.tokens += len(one_NV)
            one_NV, other_NV = (each - each.mean(-1, keepdim=True) for each in (one_NV, other_NV))
            self.one_other += float(torch.linalg.vecdot(one_NV, other_NV).sum())
            self.other_other += float(torch.linalg.vecdot(other_NV, other_NV).sum())

    @property
    def slope(self) -> float:
        return self.one_other / self.other_other if self.other_other else 1.0

    @property
    def bias(self) -> float:
        return abs(self.slope - 1)

    @property
    def kl(self) -> float:
        return self.total_kl / max(1, self.tokens)
