"""How the models lie on the devices: whole, or in shards of a fake process group that has no processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel

from minillm.errors import check
from minillm.models import Architecture

Strategy = Literal["single", "ddp", "fsdp", "fsdp_tp"]
STRATEGIES = get_args(Strategy)
# Linear layers of a decoder layer by their last name: those whose outputs are split, those whose inputs are.
_COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1")
_ROWS = ("o_proj", "out_proj", "down_proj", "fc2")


@dataclass(frozen=True)
class Layout:
    """`devices` of a strategy, `tensor` of them to each row of data.

    single, ddp: both models whole on each device. fsdp: the student's weights, gradients and moments in shards over all
    devices, a unit each decoder layer and one for embeddings, final norm and head; the teacher's decoder layers in
    shards, its embeddings and head whole. fsdp_tp: the same over `data` groups of `tensor` devices, which share the
    decoder's linear layers.
    """

    strategy: Strategy = "single"
    devices: int = 1
    tensor: int = 1

    def __post_init__(self):
        check(
            (self.strategy in STRATEGIES, f"layout={self.strategy}: wanted auto or one of {', '.join(STRATEGIES)}"),
            (self.devices > 0, f"devices={self.devices}: wanted a positive number"),
            (
                self.strategy != "single" or self.devices == 1,
                f"layout=single with devices={self.devices}: wanted 1, or ddp, fsdp or fsdp_tp",
            ),
            (
                self.tensor > 0 and self.devices % max(1, self.tensor) == 0,
                f"tensor_devices={self.tensor}: wanted a divisor of devices={self.devices}",
            ),
            (
                (self.strategy == "fsdp_tp") == (self.tensor > 1),
                f"tensor_devices={self.tensor} with layout={self.strategy}: wanted 2 or more with fsdp_tp, else 1",
            ),
        )

    @property
    def data(self) -> int:
        """Groups of devices among which rows are shared out."""
        return self.devices // self.tensor

    @property
    def sharded(self) -> bool:
        return self.strategy in ("fsdp", "fsdp_tp")

    @contextmanager
    def meshes(self) -> Iterator[Meshes | None]:
        """Of a fake process group, as its rank 0; None where nothing is sharded."""
        if not self.sharded:
            yield None
            return
        dist.init_process_group("fake", rank=0, world_size=self.devices, store=FakeStore())
        try:
            whole = init_device_mesh("cpu", (self.data, self.tensor), mesh_dim_names=("data", "tensor"))
            yield Meshes(whole["data"], whole["tensor"])
        finally:
            dist.destroy_process_group()


class Meshes(NamedTuple):
    data: DeviceMesh
    tensor: DeviceMesh


class Root(nn.Module):
    """Calls a function: what is left of a network around its layers is gathered meanwhile."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, function: Callable):
        return function()


def decoder_layers(network: PreTrainedModel) -> nn.ModuleList:
    n_layers = network.config.num_hidden_layers
    return next(each for each in network.modules() if isinstance(each, nn.ModuleList) and len(each) == n_layers)


def split(network: PreTrainedModel, meshes: Meshes | None) -> None:
    """Tensor parallel, in place: this rank's part of the decoder's linear layers."""
    if meshes is None or meshes.tensor.size() == 1:
        return
    for layer in decoder_layers(network):
        plan = {}
        for name, module in layer.named_modules():
            last = name.rpartition(".")[2]
            if isinstance(module, nn.Linear) and last in (*_COLUMNS, *_ROWS):
                plan[name] = ColwiseParallel() if last in _COLUMNS else RowwiseParallel()
            if hasattr(module, "num_heads"):  # OPT's attention reads it; other families go by what comes out
                module.num_heads //= meshes.tensor.size()
        parallelize_module(layer, meshes.tensor, plan)


def shard(network: PreTrainedModel, meshes: Meshes | None, *, root: bool) -> Root:
    """FSDP2, in place: each decoder layer, and with `root` the rest as one more unit."""
    whole = Root(network)
    if meshes is not None:
        split(network, meshes)
        with unset_fake_temporarily():  # meshes are made of real numbers; what is derived from a fake tensor stays fake
            for layer in decoder_layers(network):
                fully_shard(layer, mesh=meshes.data, reshard_after_forward=True)
            if root:
                fully_shard(whole, mesh=meshes.data)
    return whole


def check_split(case, tensor: int) -> list[str]:
    """Why the decoder layers of a case's models cannot be shared by so many devices."""
    problems = []
    for name in ("student", "teacher"):
        blueprint = getattr(case, name)
        if blueprint is None:
            continue
        shape = Architecture.of(blueprint.config)
        if shape.type == "gpt2":
            problems.append(f"layout=fsdp_tp: the {name} is GPT-2, whose fused layers cannot be split; wanted fsdp")
            continue
        problems += [
            f"tensor_devices={tensor}: wanted a divisor of the {name}'s {what} ({n})"
            for what, n in (("heads", shape.heads), ("key heads", shape.kv_heads), ("feed-forward width", shape.ffn))
            if n % tensor
        ]
    return problems
