"""The linear head of a language model: hidden states to logits, and logit gradients back.

Axes: N tokens, B rows, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (h W^T + b) / softcap), then / temperature; every step but the product optional.

    Granite divides its logits (scale < 1), Cohere multiplies them, Gemma 2 caps them; other families leave them alone.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def to(self, dtype: torch.dtype) -> Head:
        return replace(self, weight_VH=self.weight_VH.detach().to(dtype))

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        return self._finish(hidden @ self.weight_VH.T, self.bias_V)

    def columns(self, hidden_BH: Tensor) -> Tensor:
        """[B, H] -> [V, B]: the same logits the other way round, the faster product of few rows on a CPU."""
        return self._finish(self.weight_VH @ hidden_BH.T, None if self.bias_V is None else self.bias_V.unsqueeze(-1))

    def _finish(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            logits = logits + bias
        if self.softcap is not None:
            return torch.tanh(logits * (self.scale / self.softcap)) * (self.softcap / self.temperature)
        factor = self.scale / self.temperature
        return logits if factor == 1 else logits * factor

    def backward(self, logits_NV: Tensor, grad_NV: Tensor) -> Tensor:
        """From d loss / d logits to d loss / d (h W^T + b), in place; `logits_NV` are those the head gave."""
        if self.softcap is not None:  # d tanh = 1 - tanh^2
            tanh = logits_NV * (self.temperature / self.softcap)
            grad_NV.mul_(1 - tanh.square())
        factor = self.scale / self.temperature
        return grad_NV if factor == 1 else grad_NV.mul_(factor)
