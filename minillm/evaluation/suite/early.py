"""What tokenizers and configs tell before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from minillm.common.errors import ConfigError, DataError, ModelError
from minillm.data import Record, Sources
from minillm.evaluation.zero_shot import word_tokens
from minillm.models import Checkpoint
from minillm.models.families import too_long
from minillm.models.vocabulary import compare_vocabularies


def model_problems(
    names: Sequence[str],
    teacher: str | None,
    sources: Sources,
    records: Mapping[str, list[Record]],
    tasks: Mapping[str, tuple],
    lengths: Mapping[str, int],
) -> list[str]:
    """What is wrong with each model, given the prompts by file, the label words of the tasks and the teacher.
    `lengths`: tokens that may follow a prompt, by the key that sets them."""
    problems: list[str] = []
    found: dict[str, tuple[Any, Any]] = {}
    for name in names:
        try:
            found[name] = Checkpoint(name).peek()
        except (ConfigError, ModelError) as error:
            problems.append(str(error))
    for name, (config, tokenizer) in found.items():
        rows = _rows(config)
        for key, length in lengths.items():
            longest = sources.max_prompt_tokens + length
            if why := too_long(config, longest):
                problems.append(f"data.max_prompt_tokens + {key}={longest}, {name}: {why}")
        shared = rows
        if teacher in found and name != teacher:
            shared = min(rows, _rows(found[teacher][0]))
            try:
                compare_vocabularies(tokenizer, found[teacher][1], rows, _rows(found[teacher][0]))
            except ModelError as error:
                problems.append(f"{name} with teacher {teacher}: {error}")
        for of, asked in (*records.items(), *((task, rows_of) for task, (_, rows_of) in tasks.items())):
            try:
                sources.evaluation_prompts(asked, _Tokens(tokenizer, shared), of)
            except ConfigError as error:  # of the template, so the same for all files
                problems += [f"{name}: {problem}" for problem in error.problems]
                break
            except DataError as error:
                problems.append(f"{error} (with {name})")
        for task, (calibration, _) in tasks.items():
            try:
                word_tokens(calibration.words, tokenizer, shared)
            except ConfigError as error:
                problems += [f"suite.calibration.{task}.{problem} (with {name})" for problem in error.problems]
    return problems


@dataclass(frozen=True)
class _Tokens:
    """What prompts need of a `Pair`, before there is one."""

    tokenizer: PreTrainedTokenizerBase
    n_vocab: int
    pad_id: int = 0


def _rows(config: Any) -> int:
    """How many rows the embeddings have, and so the head."""
    return config.get_text_config().vocab_size
