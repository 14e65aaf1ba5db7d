"""Weights in parts: FSDP2 over the data dimension of a mesh, matrices of the layers split over its tensor dimension."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional

from minillm.parallel.group import Group

DATA, TENSOR = "data_parallel", "tensor_parallel"  # the dimensions of Lightning's mesh

# In and out of a layer all tensor-parallel ranks hold the same hidden states; between, each has some heads and some
# columns of the feed-forward part.
_SPLIT_OUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1")
_SPLIT_IN = ("o_proj", "out_proj", "down_proj", "fc2")


def shard(
    trunk: nn.Module,
    layers: nn.ModuleList,
    mesh: DeviceMesh,
    *,
    whole: Iterable[nn.Parameter] = (),
    cpu_offload: bool = False,
    half: bool = False,
) -> None:
    """Change `trunk`, whose forward gives hidden states, in place: each of its `layers` is gathered for its own use,
    the rest of the weights for a whole call. `whole` ones stay so. Gradients are summed over the data dimension.

    half: for products in bfloat16 by autocast. The layers are gathered in bfloat16; shards and sums of gradients keep
    their own type. The rest (embeddings, last norm, head) is gathered as it is: hidden states are sums of an embedding
    and what the layers add, and autocast adds them in float32.
    """
    with unset_fake_temporarily():  # a mesh has real numbers; what is made of weights without data has none
        if mesh[TENSOR].size() > 1:
            for layer in layers:
                parallelize_module(layer, mesh[TENSOR], _plan(layer))
                _fewer_heads(layer, mesh[TENSOR].size())
        policy = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if cpu_offload else OffloadPolicy()
        gather = MixedPrecisionPolicy()
        if half:
            gather = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
            _raise_norms(layers)
            for layer in layers:  # whoever calls it: validation is outside of the trainer's autocast
                layer.forward = torch.autocast(mesh.device_type, torch.bfloat16)(layer.forward)
        for layer in layers:
            fully_shard(layer, mesh=mesh[DATA], offload_policy=policy, mp_policy=gather)
        whole = set(whole)
        fully_shard(trunk, mesh=mesh[DATA], offload_policy=policy, ignored_params=whole)
    for each in whole:
        each.data = each.data.to(mesh.device_type)
    for unit in _units(trunk):
        # Our losses are parts of a sum with a global denominator.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def _plan(layer: nn.Module) -> dict[str, ParallelStyle]:
    """For the linear modules of one decoder layer, those of LoRA adapters among them."""
    plan: dict[str, ParallelStyle] = {}
    for name, module in layer.named_modules():
        parts = name.split(".")
        if isinstance(module, nn.Linear):
            if any(part in _SPLIT_OUT for part in parts) and "lora_A" not in parts:
                plan[name] = ColwiseParallel()
            elif any(part in _SPLIT_IN for part in parts) and "lora_B" not in parts:
                plan[name] = RowwiseParallel()
        elif parts[-1] in ("q_norm", "k_norm"):  # one weight for all heads: its gradient is summed over them
            plan[name] = SequenceParallel(sequence_dim=2, use_local_output=True)
    return plan


def _fewer_heads(layer: nn.Module, size: int) -> None:
    for module in layer.modules():
        if isinstance(getattr(module, "num_heads", None), int):  # OPT; the others count heads by what comes in
            module.num_heads //= size


def _raise_norms(layers: nn.ModuleList) -> None:
    """Let layer norms compute in float32 whatever the type of their weights, as autocast does it on CUDA. On a CPU
    torch refuses weights in bfloat16 beside float32 states. (RMS norms of transformers do it themselves.)"""
    for norm in layers.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.forward = partial(_norm_in_float32, norm)


def _norm_in_float32(norm: nn.LayerNorm, states: Tensor) -> Tensor:
    weight, bias = (None if each is None else each.float() for each in (norm.weight, norm.bias))
    return functional.layer_norm(states.float(), norm.normalized_shape, weight, bias, norm.eps)


@contextmanager
def without_autocast(network: nn.Module) -> Iterator[None]:
    """Autocast is off within this context, in layers that were shared out as `half` too."""
    layers = [each for each in network.modules() if isinstance(each, FSDPModule) and "forward" in vars(each)]
    halved = {layer: layer.forward for layer in layers}
    for layer, forward in halved.items():
        layer.forward = forward.__wrapped__
    try:
        with torch.autocast(next(network.parameters()).device.type, enabled=False):
            yield
    finally:
        for layer, forward in halved.items():
            layer.forward = forward


def reduce_gradients(trunk: nn.Module, now: bool) -> None:
    """Whether backward passes from now on sum gradients over the data dimension. Without that each device keeps whole
    gradients; the next pass with it sums them too."""
    for unit in _units(trunk):
        unit.set_requires_gradient_sync(now, recurse=False)


def tensor_group(mesh: DeviceMesh) -> Group:
    """The ranks that share layers with this one: they have the same rows."""
    with unset_fake_temporarily():
        return Group(mesh[TENSOR].get_local_rank(), mesh[TENSOR].size(), mesh[TENSOR].get_group())


def _units(trunk: nn.Module) -> list[FSDPModule]:
    return [module for module in trunk.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(trunk: nn.Module) -> Iterator[None]:
    """All weights are whole meanwhile, but for a tensor dimension: any number of calls without a message between data
    ranks, so that they may differ in it. Entered and left by all ranks."""
    units = _units(trunk)
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not trunk, recurse=False)
            unit.reshard()


@torch.no_grad()
def whole_tensor(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(module: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The module's state dict with every tensor whole and on the CPU, where `keep`; elsewhere nothing. One at a time,
    called by all ranks; tied tensors stay one."""
    out: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            whole = whole_tensor(value.detach())
            seen[id(value)] = whole.cpu() if keep else whole.new_empty(0)
        if keep:
            out[name] = seen[id(value)]
    return out


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as `like` is divided; no message is sent."""
    if not isinstance(like, DTensor):
        return value
    part = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return part.to(like.device)  # with cpu_offload not that of the mesh
