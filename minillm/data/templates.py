"""From a record to prompt ids: the paper's template or the tokenizer's own chat template."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from minillm.common.errors import ConfigError, DataError, first_line
from minillm.data.records import Dropped, Record
from minillm.data.text import Messages, PlainText

TemplateName = Literal["paper", "chat"]
Turns = Sequence[tuple[str, str]]  # (role, content)
LOST = "a turn that the chat template leaves out"
_SHOWN = 8  # roles in a message

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
) -> Callable[[Record], list[int]]:
    """A function from a record to prompt ids. In both templates a control token that the record's text names stays
    text; see `PlainText`.

    paper: `bos` as in `front_ids`. chat: `system` is put before conversations that have none; `arguments` go to the
    template (for example enable_thinking=False). Where it asks for the time it gets the beginning of the day `date`
    (YYYY-MM-DD; None: today).

    The function raises Dropped for a record of which something would be lost, DataError for one that the template
    refuses, and ConfigError where a setting is the cause.

    Raises:
        ConfigError: there is no chat template, or it leaves `system` out; see `front_ids`.
    """
    if template == "chat":
        return _Chat(tokenizer, system, arguments, date).encode
    plain, front = PlainText(tokenizer), front_ids(tokenizer, bos)
    return lambda record: [*front, *plain(paper_prompt(record))]


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


class _Refused(Exception):
    """The chat template raised an error; the message is its first line."""


class _Chat:
    """The tokenizer's chat template with settings of the group `data`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None,
        arguments: Mapping[str, Any],
        date: str | None,
    ):
        self.tokenizer, self.plain = tokenizer, PlainText(tokenizer)
        self.system, self.arguments, self.date = system, arguments, date
        self._lost: dict[tuple[str, ...], list[int]] = {}
        named = tokenizer.chat_template
        if not named:
            raise ConfigError(
                "data.template=chat: this tokenizer has no chat template; set data.template=paper or use a chat model"
            )
        if isinstance(named, dict) and arguments.get("chat_template", "default") not in named:
            raise ConfigError(
                f"data.template=chat: this tokenizer has chat templates by name ({', '.join(sorted(named))}); choose "
                f"one of them, for example +data.template_arguments.chat_template={min(named)}"
            )
        if system and system.strip() and 0 in self.lost(("system", "user")):
            raise ConfigError(
                "data.system: the chat template leaves system turns out, so that this text would be lost; set "
                "data.system=null, or write it into the instructions"
            )

    def encode(self, record: Record) -> list[int]:
        own = [*record.history, ("user", record.question)]
        turns = own
        if self.system is not None and own[0][0] != "system":
            turns = [("system", self.system), *own]
        for role, content in (turns[at] for at in self.lost(tuple(role for role, _ in turns))):
            if content.strip():
                raise Dropped(f"{LOST} ({role})")
        try:
            return self.plain.chat(_messages(turns), lambda messages: self._render(messages, self.arguments))
        except _Refused as error:
            raise self._blame(record, own, turns, str(error)) from error

    def lost(self, roles: tuple[str, ...]) -> list[int]:
        """Numbers of the turns whose content changes nothing in the rendered text, found with made-up contents: of a
        real one a template may leave out a part, such as the reasoning of an earlier answer."""
        if roles not in self._lost:
            turns = [(role, f"zq{at}zq") for at, role in enumerate(roles)]
            others = [[*turns[:at], (role, "qz"), *turns[at + 1 :]] for at, role in enumerate(roles)]
            text = self._try(turns)
            self._lost[roles] = [
                at
                for at, (_, word) in enumerate(turns)
                if text is not None and word not in text and self._try(others[at]) == text
            ]
        return self._lost[roles]

    def _render(self, messages: Messages, arguments: Mapping[str, Any]) -> str:
        tokenizer = self.tokenizer
        try:
            if asks_for_date(tokenizer):
                # transformers turns functions among the arguments into text, and has a clock of its own.
                template = tokenizer.get_chat_template(arguments.get("chat_template"), arguments.get("tools"))
                day = datetime.date.fromisoformat(self.date) if self.date else datetime.date.today()
                _compile_jinja_template(template).globals["strftime_now"] = lambda text: day.strftime(text)
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **arguments)
        except Exception as error:  # a template is a program: it raises what it likes
            raise _Refused(first_line(error)) from error

    def _try(self, turns: Turns, arguments: Mapping[str, Any] | None = None) -> str | None:
        try:
            return self._render(_messages(turns), self.arguments if arguments is None else arguments)
        except _Refused:
            return None

    def _blame(self, record: Record, own: Turns, turns: Turns, reason: str) -> ConfigError | DataError:
        """The setting without which the record can be rendered; or the template, if it fails on any question; or the
        record."""
        what = f"the chat template raises an error ({reason})"
        if turns is not own and self._try(own) is not None:
            return ConfigError(f"data.system: {what} at {record.id}, but not without this text; set data.system=null")
        if self.arguments and self._try(turns, {}) is not None:
            return ConfigError(
                f"data.template_arguments={dict(self.arguments)}: {what} at {record.id}, but not without them"
            )
        if self._try([("user", "zq")]) is None:
            return ConfigError(
                f"data.template=chat: {what} at {record.id} and at a plain question; mend the template in the "
                "tokenizer's directory, or set data.template=paper"
            )
        roles = ", ".join(role for role, _ in turns[:_SHOWN]) + (", ..." if len(turns) > _SHOWN else "")
        return DataError(f"{record.id}: {what}; its turns: {roles}; change the row, or use another data.template")


def _messages(turns: Turns) -> Messages:
    return [{"role": role, "content": content} for role, content in turns]
