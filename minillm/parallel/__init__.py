"""Many devices: who does which rows, weights in parts, processes. Nothing else imports torch.distributed."""

from minillm.parallel.fake import fake_mesh
from minillm.parallel.first import FirstFailed, check_shared, on_first
from minillm.parallel.gradients import by_mesh, clip_gradients, gradient_norm, own_part
from minillm.parallel.group import ALONE, Group
from minillm.parallel.launch import agree, barrier, environment, join, launch, leave
from minillm.parallel.notes import FAILED, FINISHED, INTERRUPTED, TRAINING, note
from minillm.parallel.settings import KINDS, Parallel
from minillm.parallel.sharding import (
    SPLITTABLE,
    DeviceMesh,
    gathered,
    reduce_gradients,
    shard,
    tensor_group,
    whole_state,
    without_autocast,
)
from minillm.parallel.strategies import Replicated, Sharded, group_of, lightning_strategy

__all__ = [
    "ALONE",
    "FAILED",
    "FINISHED",
    "INTERRUPTED",
    "KINDS",
    "SPLITTABLE",
    "TRAINING",
    "DeviceMesh",
    "FirstFailed",
    "Group",
    "Parallel",
    "Replicated",
    "Sharded",
    "agree",
    "barrier",
    "by_mesh",
    "check_shared",
    "clip_gradients",
    "environment",
    "fake_mesh",
    "gathered",
    "gradient_norm",
    "group_of",
    "join",
    "launch",
    "leave",
    "lightning_strategy",
    "note",
    "on_first",
    "own_part",
    "reduce_gradients",
    "shard",
    "tensor_group",
    "whole_state",
    "without_autocast",
]
