"""Rollouts: answers drawn from student, teacher or their mixture in one pass, and what models say about answers."""

from minillm.common.lazy import lazily

_MODULES = {
    "decoding": ("decode",),
    "sampler": ("Sampler",),
    "score": (
        "Divergence",
        "answer_logprobs",
        "prepared",
        "rollout_alignment",
        "rollout_divergence",
        "with_costs",
        "with_teacher",
    ),
    "spans": ("with_spans",),
    "vllm": ("VllmSampler",),
}
__getattr__ = lazily(__name__, _MODULES)
__all__ = [name for names in _MODULES.values() for name in names]
