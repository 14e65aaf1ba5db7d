"""MiniLLM: on-policy distillation of language models by reverse KL (arXiv 2306.08543)."""

from importlib import import_module

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "minillm.api": (
        "Run",
        "Student",
        "backward",
        "distill",
        "evaluate",
        "finetune",
        "generate",
        "load_pair",
        "rollouts",
    ),
    "minillm.objectives.linear_loss": ("LinearLoss",),
    "minillm.models": ("Lora", "Pair"),
    "minillm.train.regime": ("OnPolicy", "Supervised"),
    "minillm.train.start": ("SupervisedStart",),
    "minillm.objectives": ("CrossEntropy", "MiniLLM", "PretrainLoss"),
    "minillm.train.optim": ("Optim",),
    "minillm.rollout": ("Sampler",),
    "minillm.common.types": ("Rollout",),
}  # fmt: skip
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    """Public names are imported when they are first used: `import minillm` alone loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'minillm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
