"""From a record to prompt ids: the paper's template or the tokenizer's own chat template."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from minillm.common.errors import ConfigError, DataError, first_line
from minillm.data.records import Dropped, Record
from minillm.data.text import Messages, PlainText

TemplateName = Literal["paper", "chat"]
Encoder = Callable[[Sequence[Record]], list[list[int] | Dropped]]
LOST = "a turn that the chat template leaves out"

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
    """Raises DataError for a conversation of several turns, which the paper's prompt has no place for."""
    if record.history:
        raise DataError(f"{record.id}: a conversation of several turns; set data.template=chat")
    text = _WITH_INPUT if record.input.strip() else _WITHOUT_INPUT
    return text.format(instruction=record.instruction, input=record.input)


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateName,
    system: str | None,
    arguments: Mapping[str, Any],
    *,
    bos: bool | None = None,
    date: str | None = None,
) -> Encoder:
    """A function from records to the prompt ids of each, or Dropped where something would be lost. It raises DataError
    for a record that the template refuses.

    paper: `bos` as in `front_ids`. chat: `system` is put before conversations that have none; `arguments` go to the
    template (for example enable_thinking=False). Where it asks for the time it gets the beginning of the day `date`
    (YYYY-MM-DD; None: today).

    Raises:
        ConfigError: there is no chat template, or it leaves `system` out; see `front_ids`.
    """
    if template == "chat":
        return _Chat(tokenizer, system, arguments, date).encode
    plain, front = PlainText(tokenizer), front_ids(tokenizer, bos)

    def encode(records: Sequence[Record]) -> list[list[int] | Dropped]:
        rows = plain.many([paper_prompt(record) for record in records])
        return [row if isinstance(row, Dropped) else [*front, *row] for row in rows]

    return encode


def front_ids(tokenizer: PreTrainedTokenizerBase, bos: bool | None) -> list[int]:
    """What stands before the paper's prompt. None: what the tokenizer itself puts before a text, as it did in the
    model's pre-training; True: bos; False: nothing. Raises ConfigError: bos is asked for and there is none."""
    if bos is None:
        with_front, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        starts = (at for at in range(len(with_front)) if with_front[at : at + len(text)] == text)
        return with_front[: next(starts, 0)]
    if bos and tokenizer.bos_token_id is None:
        raise ConfigError("data.bos=true: this tokenizer has no bos token; set data.bos=null")
    return [tokenizer.bos_token_id] if bos else []


def asks_for_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does the chat template write the day into the prompt?"""
    return "strftime_now" in str(tokenizer.chat_template)


class _Chat:
    """The tokenizer's chat template with settings of the group `data`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None, arguments: Mapping, date: str | None):
        self.tokenizer, self.plain = tokenizer, PlainText(tokenizer)
        self.system, self.arguments, self.date = system, arguments, date
        if not tokenizer.chat_template:
            raise ConfigError("data.template=chat: this tokenizer has no chat template; set data.template=paper")
        self.lost = lru_cache(self._lost)
        if system and system.strip() and 0 in self.lost(("system", "user")):
            raise ConfigError("data.system: the chat template leaves system turns out; set data.system=null")

    def encode(self, records: Sequence[Record]) -> list[list[int] | Dropped]:
        conversations = [self._messages(record) for record in records]
        lost = [self._lost_turn(messages) for messages in conversations]
        whole = [messages for messages, reason in zip(conversations, lost, strict=True) if reason is None]
        try:
            ids = iter(self.plain.chats(whole, self._render))
        except Exception as error:  # a template is a program: it raises what it likes
            failed = (record for record, each in zip(records, conversations, strict=True) if self._try(each) is None)
            if (record := next(failed, None)) is None:
                raise
            roles = ", ".join(each["role"] for each in self._messages(record))
            raise DataError(
                f"{record.id}: the chat template raises an error ({first_line(error)}); its turns: {roles}; change the "
                "row, data.system, data.template_arguments or data.template"
            ) from error
        return [next(ids) if reason is None else reason for reason in lost]

    def _messages(self, record: Record) -> Messages:
        turns = [*record.history, ("user", record.question)]
        if self.system is not None and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        return [{"role": role, "content": content} for role, content in turns]

    def _lost_turn(self, messages: Messages) -> Dropped | None:
        lost = (messages[at] for at in self.lost(tuple(each["role"] for each in messages)))
        return next((Dropped(f"{LOST} ({each['role']})") for each in lost if each["content"].strip()), None)

    def _lost(self, roles: tuple[str, ...]) -> list[int]:
        """Numbers of the turns whose content is not in the rendered text, found with made-up contents: of a real one a
        template may leave out a part, such as the reasoning of an earlier answer. No filter changes digits."""
        words = [f"731{at:03}137" for at in range(len(roles))]
        text = self._try([{"role": role, "content": word} for role, word in zip(roles, words, strict=True)])
        return [at for at, word in enumerate(words) if text is not None and word not in text]

    def _render(self, conversations: Sequence[Messages]) -> list[str]:
        if not conversations:
            return []
        tokenizer, arguments = self.tokenizer, self.arguments
        if asks_for_date(tokenizer):
            # transformers turns functions among the arguments into text, and has a clock of its own.
            template = tokenizer.get_chat_template(arguments.get("chat_template"), arguments.get("tools"))
            day = datetime.date.fromisoformat(self.date) if self.date else datetime.date.today()
            _compile_jinja_template(template).globals["strftime_now"] = lambda text: day.strftime(text)
        return tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False, **arguments)

    def _try(self, messages: Messages) -> str | None:
        try:
            return self._render([messages])[0]
        except Exception:  # a template is a program; None says that it refuses these turns
            return None
