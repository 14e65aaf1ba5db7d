"""The global norm of gradients that may be whole, or in parts over different meshes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

DECAYED = "decayed"  # key of an optimizer's groups: whether their weights are decayed


def by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors that one operation may take together: all whole, or all parts over one mesh."""
    groups: dict = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device_mesh if isinstance(tensor, DTensor) else None].append(tensor)
    return list(groups.values())


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients there are (0-d, the same on every rank; on the device of the first)."""
    groups = by_mesh(each.grad for each in parameters if each.grad is not None)
    norms = [nn.utils.get_total_norm(group) for group in groups] or [torch.zeros(())]
    norms = [each.full_tensor() if isinstance(each, DTensor) else each for each in norms]
    return (
        norms[0]
        if len(norms) == 1
        else torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))
    )


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scale all gradients so that a `norm` above the limit becomes the limit."""
    for group in by_mesh(parameters):
        nn.utils.clip_grads_with_norm_(group, limit, norm)
