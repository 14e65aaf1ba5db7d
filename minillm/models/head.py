"""The linear head of a language model: hidden states to logits, and logit gradients back.

Axes: N tokens, B rows, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

HALF_PRODUCTS = {"cuda"}  # types of device that multiply half types and sum and give the products in float32


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (h W^T + b) / softcap), then / temperature; every step but the product optional.
    Granite divides its logits (scale < 1), Cohere multiplies them, Gemma 2 caps them. Logits are float32 (float64 where
    the weight is): rounded to a half type they would add noise to every reward."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def logit_bytes(self) -> int:
        """Of the logits of a token."""
        return len(self.weight_VH) * max(4, self.weight_VH.element_size())

    def input_type(self, hidden: Tensor) -> torch.dtype:
        return product_type(hidden, self.weight_VH)

    def to(self, dtype: torch.dtype) -> Head:
        return replace(self, weight_VH=self.weight_VH.detach().to(dtype))

    def ready(self) -> Head:
        """Without a gradient, its weight cast once for all tokens to the type of the product."""
        return self.to(product_type(self.weight_VH, self.weight_VH))

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        return self._finish(_product(hidden, self.weight_VH.T), self.bias_V)

    def columns(self, hidden_BH: Tensor) -> Tensor:
        """[B, H] -> [V, B]: the same logits the other way round, the faster product of few rows on a CPU."""
        bias_V1 = None if self.bias_V is None else self.bias_V.unsqueeze(-1)
        return self._finish(_product(self.weight_VH, hidden_BH.T), bias_V1)

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


def product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type in which a head multiplies: autocast's or that of its inputs; float32 in place of a half type
    where the device is none of HALF_PRODUCTS (a CPU)."""
    device = weight.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else torch.promote_types(hidden.dtype, weight.dtype)
    return torch.float32 if dtype.itemsize == 2 and device not in HALF_PRODUCTS else dtype


def _product(left: Tensor, right: Tensor) -> Tensor:
    """[..., H] x [H, N], summed in float32 at least and given so."""
    dtype = product_type(left, right)
    trained = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    with torch.autocast(left.device.type, enabled=False):
        if dtype.itemsize > 2 or trained:  # torch.mm's out_dtype has no gradient
            dtype = torch.promote_types(dtype, torch.float32)
            return left.to(dtype) @ right.to(dtype)
        rows = torch.mm(left.to(dtype).flatten(0, -2), right.to(dtype), out_dtype=torch.float32)
        return rows.view(*left.shape[:-1], right.shape[-1])
