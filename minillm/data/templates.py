"""From a record to prompt ids: the paper's template or the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from minillm.data.records import Record
from minillm.errors import ConfigError, DataError

TemplateName = Literal["paper", "chat"]

# The prompt of the published runs (Alpaca's), with and without an input.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def paper_prompt(record: Record) -> str:
    """The paper's prompt text. Raises DataError for a conversation of several turns, which it has no place for."""
    if record.history:
        raise DataError(
            f"{record.id}: a conversation of several turns; the paper's template has one: set data.template=chat"
        )
    return (_WITH_INPUT if record.input else _WITHOUT_INPUT).format(instruction=record.instruction, input=record.input)


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase, template: TemplateName, system: str | None, arguments: Mapping[str, Any]
) -> Callable[[Record], list[int]]:
    """A function from a record to prompt ids.

    paper: no bos. chat: `system` is put before conversations that have none; `arguments` go to the template
    (for example enable_thinking=False).

    Raises:
        ConfigError: chat is asked for and the tokenizer has no chat template.
    """
    if template == "paper":
        return lambda record: tokenizer(paper_prompt(record), add_special_tokens=False)["input_ids"]
    if not tokenizer.chat_template:
        raise ConfigError(
            "data.template=chat: this tokenizer has no chat template; set data.template=paper or use a chat model"
        )

    def encode(record: Record) -> list[int]:
        turns = [*record.history, ("user", record.question)]
        if system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", system))
        messages = [{"role": role, "content": content} for role, content in turns]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **arguments)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return encode
