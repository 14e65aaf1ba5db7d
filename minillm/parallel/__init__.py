"""Many devices: who does which rows, weights in parts, processes. Nothing else imports torch.distributed."""

from minillm.parallel.gradients import by_mesh, clip_gradients, gradient_norm, own_part
from minillm.parallel.group import ALONE, Group
from minillm.parallel.launch import agree, barrier, environment, in_a_worker, join, launch, leave, rank, stand_back
from minillm.parallel.settings import Parallel
from minillm.parallel.sharding import SPLITTABLE, DeviceMesh, gathered, shard, whole_state
from minillm.parallel.strategies import Replicated, Sharded, group_of, lightning_strategy

__all__ = [
    "ALONE",
    "SPLITTABLE",
    "DeviceMesh",
    "Group",
    "Parallel",
    "Replicated",
    "Sharded",
    "agree",
    "barrier",
    "by_mesh",
    "clip_gradients",
    "environment",
    "gathered",
    "gradient_norm",
    "group_of",
    "in_a_worker",
    "join",
    "launch",
    "leave",
    "lightning_strategy",
    "own_part",
    "rank",
    "shard",
    "stand_back",
    "whole_state",
]
