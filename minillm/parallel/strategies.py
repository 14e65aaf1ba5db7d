"""Lightning's strategies for our loop: it sums gradients itself, and a checkpoint is always that of a single device."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from minillm.common.saved import load_saved
from minillm.parallel.gradients import DECAYED
from minillm.parallel.group import Group
from minillm.parallel.settings import Parallel
from minillm.parallel.sharding import DATA, part_of, whole_state, whole_tensor


class Replicated(DDPStrategy):
    """Processes with whole weights. There is no DistributedDataParallel around the module: an optimizer step has many
    backward passes, and the sum over ranks is made once, of what they added up."""

    def configure_ddp(self) -> None:
        """Nothing to wrap."""


class Sharded(ModelParallelStrategy):
    """Weights and optimizer in parts; state dicts go out and come in whole, in the order of a single device."""

    def __init__(self, settings: Parallel):
        super().__init__(
            data_parallel_size=settings.data_parallel_size,
            tensor_parallel_size=settings.tensor_parallel_size,
            save_distributed_checkpoint=False,
        )
        self.settings = settings

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As elsewhere before the callbacks begin: the weights are in parts by then, since `configure_model`."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def model_to_device(self) -> None:
        """With cpu_offload the parts stay on the CPU, where FSDP2 wants them between uses; buffers alone go to the
        device, which the module then gives as its own."""
        if not self.settings.cpu_offload:
            super().model_to_device()
            return
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))
        _update_properties(self.model, device=self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Whole on rank 0, empty elsewhere."""
        return whole_state(self.lightning_module, keep=self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        parts = self.lightning_module.state_dict()
        weights = checkpoint["state_dict"]
        ours = {name: part_of(value, parts[name]) if name in parts else value for name, value in weights.items()}
        self.lightning_module.load_state_dict(ours, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        groups = self._groups(optimizer)
        place = {id(each): number for number, each in enumerate(chain(*groups.values()))}
        state = {}
        for parameter, values in sorted(optimizer.state.items(), key=lambda item: place[id(item[0])]):
            whole = {name: whole_tensor(value).cpu() for name, value in values.items()}
            if self.is_global_zero:
                state[place[id(parameter)]] = whole
        settings = {group[DECAYED]: group for group in optimizer.param_groups}
        numbered = [settings[each] | {"params": [place[id(one)] for one in group]} for each, group in groups.items()]
        return {"state": state, "param_groups": numbered}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ours = optimizer.state_dict()
            place = {id(each): number for number, each in enumerate(chain(*self._groups(optimizer).values()))}
            settings = {group[DECAYED]: group for group in saved["param_groups"]}
            numbered = [each for group in optimizer.param_groups for each in group["params"]]
            state = {}
            for number, parameter in enumerate(numbered):
                values = saved["state"].get(place[id(parameter)], {})
                if values:
                    state[number] = {
                        name: part_of(value, parameter) if value.shape == parameter.shape else value
                        for name, value in values.items()
                    }
            groups = [settings[group[DECAYED]] | {"params": group["params"]} for group in ours["param_groups"]]
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_checkpoint(self, checkpoint_path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read by every rank, on the CPU and mapped, so that each touches little more than its parts."""
        return load_saved(checkpoint_path)

    def _groups(self, optimizer: Optimizer) -> dict[bool, list[torch.nn.Parameter]]:
        """The parameters that are decayed and those that are not, each in the order of a single device."""
        order = {id(each): number for number, each in enumerate(self.lightning_module.parameters())}
        found: dict[bool, list] = {}
        for group in optimizer.param_groups:
            found.setdefault(group[DECAYED], []).extend(group["params"])
        return {decayed: sorted(group, key=lambda each: order[id(each)]) for decayed, group in found.items()}


def group_of(strategy: Strategy) -> Group:
    """The ranks that a trainer's strategy gives rows of their own."""
    if isinstance(strategy, Sharded):
        mesh = strategy.device_mesh[DATA]
        return Group(mesh.get_local_rank(), mesh.size(), mesh.get_group())
    if isinstance(strategy, Replicated):
        return Group(strategy.global_rank, strategy.world_size, dist.group.WORLD)
    return Group()


def lightning_strategy(settings: Parallel) -> Strategy | str:
    """For the trainer."""
    if settings.sharded:
        return Sharded(settings)
    return Replicated() if settings.kind == "ddp" else "auto"
