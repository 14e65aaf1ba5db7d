"""Text to token ids. A control token (`<|im_end|>`) that is written in a text stays text."""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from minillm.data.records import Dropped

UNWRITABLE = "a control token in the text that this tokenizer cannot encode as text"
Messages = list[dict[str, str]]


class PlainText:
    """Encodes texts with one tokenizer, without bos and eos. Control tokens are those that it calls special; other
    added tokens (`<think>`) are what they always are.

    Raises, from every call:
        Dropped: the text of a control token has no other tokens than that one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        names = {id: tokenizer.convert_ids_to_tokens(id) for id in special}
        names = {id: name for id, name in names.items() if not name.isspace()}
        self._control = names.keys() - harmless(tokenizer)
        self._unknown = next((names[id] for id in harmless(tokenizer) if id in names), None)
        longest_first = sorted(names.values(), key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def __call__(self, text: str) -> list[int]:
        ids = self._encode(text)
        if self._has_control(text, ids):
            ids = self._encode(text, split_special_tokens=True)
            if not self._control.isdisjoint(ids):
                raise Dropped(UNWRITABLE)
        return ids

    def chat(self, messages: Messages, render: Callable[[Messages], str]) -> list[int]:
        """Ids of the rendered conversation. Control tokens that `render` writes are real ones."""
        texts = [message["content"] for message in messages]
        if not any(self._has_control(text, self._encode(text)) for text in texts):
            return self._encode(render(messages))
        marked = [each | {"content": mark_control_tokens(each["content"], self._written)} for each in messages]
        if marked == messages:  # written otherwise, for example in full-width characters
            raise Dropped(UNWRITABLE)
        try:
            return encode_marked_chat(self._tokenizer, render(marked))
        except ValueError as error:
            raise Dropped(UNWRITABLE) from error

    def _encode(self, text: str, **options) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _has_control(self, text: str, ids: list[int]) -> bool:
        written = self._unknown is not None and self._unknown in text
        return written or not self._control.isdisjoint(ids)


def harmless(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token for what a tokenizer does not know, whoever wrote it; unless it begins or ends a text too."""
    return {tokenizer.unk_token_id} - {None, tokenizer.eos_token_id, tokenizer.bos_token_id}
