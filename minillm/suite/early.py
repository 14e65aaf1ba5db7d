"""What tokenizers and configs tell before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.data import Sources
from minillm.data.templates import prompt_encoder
from minillm.errors import ConfigError, ModelError
from minillm.models import Checkpoint
from minillm.models.vocabulary import compare_vocabularies
from minillm.zero_shot import word_tokens


def model_problems(
    names: Sequence[str],
    teacher: str | None,
    sources: Sources,
    tasks: Mapping[str, tuple],
    lengths: Mapping[str, int],
) -> list[str]:
    """Of each model with its prompts, its label words and its teacher; `lengths` of what may follow a prompt."""
    problems: list[str] = []
    found: dict[str, tuple[Any, Any]] = {}
    for name in names:
        try:
            found[name] = Checkpoint(name).peek()
        except (ConfigError, ModelError) as error:
            problems.append(str(error))
    for name, (config, tokenizer) in found.items():
        rows = _rows(config)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        for key, length in lengths.items():
            longest = sources.max_prompt_tokens + length
            if positions is not None and longest > positions:
                problems.append(
                    f"data.max_prompt_tokens + {key}={longest}: {name} has {positions} positions; lower them"
                )
        try:
            prompt_encoder(tokenizer, sources.template, sources.system, sources.template_arguments)
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
        shared = rows
        if teacher in found and name != teacher:
            shared = min(rows, _rows(found[teacher][0]))
            try:
                compare_vocabularies(tokenizer, found[teacher][1], rows, _rows(found[teacher][0]))
            except ModelError as error:
                problems.append(f"{name} with teacher {teacher}: {error}")
        for task, (calibration, _) in tasks.items():
            try:
                word_tokens(calibration.words, tokenizer, shared)
            except ConfigError as error:
                problems += [f"suite.calibration.{task}.{problem} (with {name})" for problem in error.problems]
    return problems


def _rows(config: Any) -> int:
    """Of the embeddings, and so of the head."""
    return config.get_text_config().vocab_size
