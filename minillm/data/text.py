"""Text to token ids. A control token (`<|im_end|>`) that is written in a text stays text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

import tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from minillm.data.records import Dropped

UNWRITABLE = "a control token in the text that this tokenizer cannot encode as text"
Messages = list[dict[str, str]]


class PlainText:
    """Encodes texts with one tokenizer, without bos and eos. Control tokens are those that it calls special; other
    added tokens (`<think>`) are what they always are. A fast tokenizer uses all cores."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        names = {id: tokenizer.convert_ids_to_tokens(id) for id in special}
        names = {id: name for id, name in names.items() if not name.isspace()}
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
        self._control = names.keys() - unknown
        longest_first = sorted(names.values(), key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Otherwise a control token may also be written in another way, for example in full-width characters.
        self._literal = tokenizer.is_fast and all(id in added and not added[id].normalized for id in names)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; a control token has its own id only if the tokenizer has no other tokens for it."""
        if self._tokenizer.is_fast:
            return self._encode(texts, split=True)
        rows = self._encode(texts)
        for at, text in enumerate(texts):
            if self._has_control(text, rows[at]):  # in other texts it would split other added tokens too
                (rows[at],) = self._encode([text], split=True)
        return rows

    def many(self, texts: Sequence[str]) -> list[list[int] | Dropped]:
        """The ids of each text, or Dropped where the text of a control token has no other tokens than that one."""
        return [ids if self._control.isdisjoint(ids) else Dropped(UNWRITABLE) for ids in self.ids(texts)]

    def chats(
        self, conversations: Sequence[Messages], render: Callable[[Sequence[Messages]], list[str]]
    ) -> list[list[int] | Dropped]:
        """Ids of each rendered conversation, or Dropped as in `many`. Control tokens that `render` writes are real."""
        texts = [message["content"] for messages in conversations for message in messages]
        control = map(self._has_control, texts, repeat(()) if self._literal else self._encode(texts))
        marked = [any([next(control) for _ in messages]) for messages in conversations]
        whole = [messages for messages, some in zip(conversations, marked, strict=True) if not some]
        plain = iter(self._encode(render(whole)))
        return [
            self._marked(messages, render) if some else next(plain)
            for messages, some in zip(conversations, marked, strict=True)
        ]

    def serialised(self) -> str:
        """All that decides about ids."""
        if self._tokenizer.is_fast:
            return self._backend().to_str()
        return f"{self._tokenizer} {sorted(self._tokenizer.get_vocab().items())}"

    def _marked(self, messages: Messages, render: Callable[[Sequence[Messages]], list[str]]) -> list[int] | Dropped:
        marked = [each | {"content": mark_control_tokens(each["content"], self._written)} for each in messages]
        if marked == messages:
            return Dropped(UNWRITABLE)
        (text,) = render([marked])
        try:
            return encode_marked_chat(self._tokenizer, text)
        except ValueError:
            return Dropped(UNWRITABLE)

    def _encode(self, texts: Sequence[str], split: bool = False) -> list[list[int]]:
        """`split`: control tokens as text."""
        if self._tokenizer.is_fast:  # several times as fast as by transformers, which sets all three anew in each call
            core = self._backend()
            core.encode_special_tokens = split
            return [each.ids for each in core.encode_batch_fast(list(texts), add_special_tokens=False)]
        options = dict(add_special_tokens=False, split_special_tokens=split, verbose=False)
        return self._tokenizer(list(texts), **options)["input_ids"] if texts else []

    def _backend(self) -> tokenizers.Tokenizer:
        core = self._tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        return core

    def _has_control(self, text: str, ids: Iterable[int]) -> bool:
        return bool(self._written.search(text)) or not self._control.isdisjoint(ids)
