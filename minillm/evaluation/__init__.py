"""Running models to measure them: answers to prompts, samples as prefixes, zero-shot choice."""

from minillm.evaluation.answers import Answer, answer_prompts, is_uniform, reference_loss, reference_losses, summarise

__all__ = ["Answer", "answer_prompts", "is_uniform", "reference_loss", "reference_losses", "summarise"]
