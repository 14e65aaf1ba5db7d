"""Many devices: who does which rows, weights in parts, processes. Nothing else imports torch.distributed."""

from minillm.common.lazy import lazily

_MODULES = {
    "first": ("FirstFailed", "agree", "barrier", "check_shared", "on_first"),
    "gradients": ("by_mesh", "clip_gradients", "gradient_norm", "own_part"),
    "group": ("ALONE", "Group"),
    "processes": ("environment", "join", "leave"),
    "settings": ("KINDS", "SPLITTABLE", "Parallel"),
    "sharding": (
        "DeviceMesh",
        "gathered",
        "reduce_gradients",
        "shard",
        "tensor_group",
        "whole_state",
        "without_autocast",
    ),
    "start": ("free_port", "launch"),
    "strategies": ("Replicated", "Sharded", "group_of", "lightning_strategy"),
}
__getattr__ = lazily(__name__, _MODULES)
__all__ = [name for names in _MODULES.values() for name in names]
