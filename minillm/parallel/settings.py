"""The config group `strategy`: how many devices, and what of the weights each one holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from minillm.common.errors import check
from minillm.common.lazy import lazy
from minillm.common.ranks import started_processes

Kind = Literal["single", "ddp", "fsdp", "fsdp_tp"]
KINDS = get_args(Kind)
SPLITTABLE = ("llama", "mistral", "opt", "qwen2", "qwen3")  # families whose layers tensor parallelism can split
torch = lazy("torch")


@dataclass(frozen=True)
class Parallel:
    """The number of devices changes speed and memory, never what is computed: all sizes are global.

    Args:
        kind: `single`; `ddp`, the student whole on each device, its gradients summed once an optimizer step; `fsdp`,
            student, gradients, optimizer and the teacher's layers in parts (FSDP2), gathered whole for each rollout;
            `fsdp_tp`, the same with each layer's matrices split over `tensor_parallel_size` devices for good.
        devices: processes on this node, one a device; `auto` is the number of GPUs, or 1 on a CPU.
        cpu_offload: with fsdp, the parts wait on the CPU while they are not in use.
        reduce: when fsdp sums gradients over devices: after each `micro_batch`, or once a `step`, which sends less and
            needs memory for whole gradients (4 bytes a trained weight) on each device.
    """

    kind: Kind = "single"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    tensor_parallel_size: int = 1
    cpu_offload: bool = False
    reduce: Literal["micro_batch", "step"] = "micro_batch"

    def __post_init__(self):
        kind, devices, nodes, size = self.kind, self.devices, self.num_nodes, self.tensor_parallel_size
        alone = devices in (1, "auto") and (nodes == 1 or devices == "auto")
        check(
            (devices == "auto" or devices > 0, f"devices={devices}: wanted a positive number, or auto"),
            (nodes > 0, f"num_nodes={nodes}: wanted a positive number"),
            (size > 0, f"tensor_parallel_size={size}: wanted 1 or more"),
            (
                kind != "single" or alone,
                f"devices={devices}, num_nodes={nodes}: strategy=single is for one device; wanted strategy=ddp, fsdp "
                "or fsdp_tp, or both 1",
            ),
            (
                kind == "fsdp_tp" or size == 1,
                f"tensor_parallel_size={size}: only strategy=fsdp_tp splits layers; wanted 1",
            ),
            (
                size < 1 or self.world_size % size == 0,
                f"tensor_parallel_size={size} does not divide the {self.world_size} devices; use a divisor",
            ),
            (
                not self.cpu_offload or self.sharded,
                f"cpu_offload=true: only parts of weights can wait on the CPU; wanted strategy=fsdp, not {kind}",
            ),
            (
                self.reduce == "micro_batch" or (self.sharded and not self.cpu_offload),
                f"reduce=step with kind={kind}, cpu_offload={str(self.cpu_offload).lower()}: it is for shards on the "
                "device (ddp sums once a step anyway); wanted reduce=micro_batch, or strategy=fsdp",
            ),
        )

    @property
    def devices_here(self) -> int:
        if self.devices != "auto":
            return self.devices
        return max(1, torch.cuda.device_count()) if self.kind != "single" else 1

    @property
    def world_size(self) -> int:
        return self.devices_here * self.num_nodes

    @property
    def data_parallel_size(self) -> int:
        """Groups of devices that work on rows of their own."""
        return self.world_size // self.tensor_parallel_size

    def __str__(self) -> str:
        """For a person."""
        split = f", layers split over {self.tensor_parallel_size}" if self.kind == "fsdp_tp" else ""
        nodes = f" on {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        return f"{self.world_size}{nodes}, {self.kind}{split}"

    @property
    def sharded(self) -> bool:
        return self.kind in ("fsdp", "fsdp_tp")

    def problems(self) -> list[str]:
        """With this machine, and with the processes that torchrun or srun have started already."""
        problems = []
        gpus, here = torch.cuda.device_count(), self.devices_here
        if gpus and here > gpus:
            problems.append(f"strategy.devices={self.devices}: this node has {gpus} GPUs; use at most as many")
        started = started_processes()
        if started not in (1, self.world_size):
            problems.append(
                f"strategy.devices={here} x strategy.num_nodes={self.num_nodes}: {started} processes were started; "
                "wanted as many as devices on all nodes"
            )
        elif started == 1 and self.num_nodes > 1:
            problems.append(
                f"strategy.num_nodes={self.num_nodes}: a process on one node cannot start those on others; use "
                "torchrun or srun on each (docs/devices.md)"
            )
        return problems
