"""Running models to measure them: answers to prompts, samples as prefixes, zero-shot choice."""

from minillm.common.lazy import lazily

_ANSWERS = (
    "Answer",
    "answer_prompts",
    "figure_values",
    "is_uniform",
    "reference_loss",
    "reference_losses",
    "summarise",
)
__getattr__ = lazily(__name__, {"answers": _ANSWERS})
__all__ = list(_ANSWERS)
