"""What tokenizers, configs and run directories tell about the models before any weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minillm.common.errors import ConfigError, DataError, ModelError
from minillm.common.overrides import override
from minillm.common.stored import read_config
from minillm.data import Record, Sources
from minillm.evaluation.zero_shot import word_tokens
from minillm.models import Checkpoint
from minillm.models.families import too_long
from minillm.models.vocabulary import compare_vocabularies

_TEMPLATE = ("template", "system", "template_arguments", "bos", "date")


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
    prompts = {**records, **{task: rows for task, (_, rows) in tasks.items()}}
    for name, (config, tokenizer) in found.items():
        n_vocab = config.get_text_config().vocab_size
        for key, length in lengths.items():
            longest = sources.max_prompt_tokens + length
            if why := too_long(config, longest):
                problems.append(f"data.max_prompt_tokens + {key}={longest}, {name}: {why}")
        if teacher in found and name != teacher:
            teacher_vocab = found[teacher][0].get_text_config().vocab_size
            try:
                compare_vocabularies(tokenizer, found[teacher][1], n_vocab, teacher_vocab)
            except ModelError as error:
                problems.append(f"{name} with teacher {teacher}: {error}")
            n_vocab = min(n_vocab, teacher_vocab)
        pair = SimpleNamespace(tokenizer=tokenizer, n_vocab=n_vocab, pad_id=0)
        problems += (f"{name}: {problem}" for problem in _prompt_problems(pair, sources, prompts))
        for task, (calibration, _) in tasks.items():
            try:
                word_tokens(calibration.words, tokenizer, n_vocab)
            except ConfigError as error:
                problems += [f"{name}: suite.calibration.{task}.{problem}" for problem in error.problems]
    return problems


def _prompt_problems(pair: Any, sources: Sources, prompts: Mapping[str, list[Record]]) -> Iterator[str]:
    for of, records in prompts.items():
        try:
            sources.evaluation_prompts(records, pair, of)
        except ConfigError as error:  # of the template, so the same for all files
            yield from error.problems
            return
        except DataError as error:
            yield str(error)


def template_notes(models: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    """One sentence for each model whose training run had other template keys than `data`, with what to type. It is no
    error: the models of one suite may come from runs with different templates."""
    notes = []
    for name in models:
        trained = _trained_with(name)
        differing = [key for key in _TEMPLATE if key in trained and trained[key] != data.get(key)]
        if not trained.get("date") or not data.get("date"):  # a template that asks for none
            differing = [key for key in differing if key != "date"]
        if differing:
            was, now = (" ".join(override(f"data.{key}", of.get(key)) for key in differing) for of in (trained, data))
            notes.append(f"{name} was trained with {was}, and is measured with {now}; to change that give {was}")
    return notes


def _trained_with(model: str) -> Mapping[str, Any]:
    """The settings `data` of the run that made RUN/student or RUN/start/student; empty where there is none."""
    files = [folder / "config.yaml" for folder in list(Path(model).expanduser().parents)[:2]]
    try:
        found = next((read_config(file).get("data") for file in files if file.exists()), None)
    except ConfigError:  # damaged: only the comparison is lost
        return {}
    return found if isinstance(found, Mapping) else {}
