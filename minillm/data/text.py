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
        # What a tokenizer does not know becomes <unk>, whoever wrote it.
        special = (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
        names = {id: tokenizer.convert_ids_to_tokens(id) for id in special}
        self._names = {id: name for id, name in names.items() if not name.isspace()}
        longest_first = sorted(self._names.values(), key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def __call__(self, text: str) -> list[int]:
        ids = self._encode(text)
        if self._has_control(ids):
            ids = self._encode(text, split_special_tokens=True)
            if self._has_control(ids):
                raise Dropped(UNWRITABLE)
        return ids

    def chat(self, messages: Messages, render: Callable[[Messages], str]) -> list[int]:
        """Ids of the rendered conversation. Control tokens that `render` writes are real ones."""
        if not any(self._has_control(self._encode(message["content"])) for message in messages):
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

    def _has_control(self, ids: list[int]) -> bool:
        return not self._names.keys().isdisjoint(ids)
