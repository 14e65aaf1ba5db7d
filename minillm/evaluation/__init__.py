"""Running models to measure them: answers to prompts, samples as prefixes, zero-shot choice."""
