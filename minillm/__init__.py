"""MiniLLM: on-policy distillation of language models by reverse KL (arXiv 2306.08543)."""

from minillm.common.lazy import lazily

__version__ = "0.2.0.dev0"

# Imported when they are first used: `import minillm` alone loads no torch.
_PUBLIC = {
    "api": "Run Student backward distill evaluate finetune generate load_pair rollouts".split(),
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
__getattr__ = lazily(__name__, _PUBLIC)
__all__ = ["__version__", *(name for names in _PUBLIC.values() for name in names)]


def __dir__() -> list[str]:
    return sorted(__all__)
