"""MiniLLM: on-policy distillation of language models by reverse KL (arXiv 2306.08543)."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from minillm.common.lazy import lazily

__version__ = "0.2.0.dev0"

# Imported when they are first used: `import minillm` alone loads no torch.
_PUBLIC = {
    "api": "Run Student backward distill evaluate finetune generate load_pair prepare rollouts".split(),
    "objectives.linear_loss": ["LinearLoss"],
    "models": ["Lora", "Pair"],
    "train.regime": ["OnPolicy", "Supervised"],
    "train.reward": ["Reward"],
    "train.start": ["SupervisedStart"],
    "objectives": ["CrossEntropy", "MiniLLM", "PretrainLoss", "SpanReverseKL"],
    "train.optim": ["Optim"],
    "rollout": ["Sampler"],
    "common.types": ["Rollout"],
}
# Before all else, because a newcomer's first command may run in a Python without the requirements.
if _MISSING := [name for name in ("hydra", "torch", "lightning", "transformers") if find_spec(name) is None]:
    _VENV = os.path.relpath(Path(__file__).parents[1] / ".venv")
    _WHY = (
        f"{sys.executable} (Python {sys.version.split()[0]}) has no {', '.join(_MISSING)}: wanted Python 3.11 or newer "
        f"with the requirements; use {_VENV}/bin/python{'' if os.path.isdir(_VENV) else ', made by `make .venv/.main`'}"
    )
    if os.path.basename([*sys.argv, ""][0]) in ("-m", "train.py", "evaluate.py"):  # a command of ours
        sys.exit(f"Error: {_WHY}")
    raise ModuleNotFoundError(_WHY)

__getattr__ = lazily(__name__, _PUBLIC)
__all__ = ["__version__", *(name for names in _PUBLIC.values() for name in names)]


def __dir__() -> list[str]:
    return sorted(__all__)
