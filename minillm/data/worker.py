"""Text to token ids, here or in a process of its own: `python worker.py` reads batches and writes ids.

As a program it imports neither torch nor transformers: a worker starts in a fraction of a second and is small.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import Any

import numpy as np
import tokenizers

Batch = list[tuple[str, bool]]  # pieces of text, and whether a document ends there


def portable(tokenizer: Any) -> Any:
    """What `encode` takes, in a form that can be sent to another process: the serialised core of a fast tokenizer (no
    truncation, no padding, control tokens in a text as text), or a slow tokenizer itself."""
    if not tokenizer.is_fast:
        return tokenizer
    core = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True
    return core


def encode(tokenizer: Any, eos: int, batch: Batch) -> np.ndarray:
    """[N] int32: the ids of all pieces, `eos` after the last of each document."""
    texts = [text for text, _ in batch]
    if isinstance(tokenizer, tokenizers.Tokenizer):
        rows = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    else:
        options = dict(add_special_tokens=False, verbose=False)
        # The token for what is unknown is none, unless it ends a text too.
        name = tokenizer.unk_token
        control = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {eos})
        rows = tokenizer(texts, **options)["input_ids"]
        for at, row in enumerate(rows):
            written = name is not None and name in texts[at]
            if written or not control.isdisjoint(row):  # in other texts it would split other added tokens too
                rows[at] = tokenizer(texts[at], split_special_tokens=True, **options)["input_ids"]
    ids = []
    for row, (_, last) in zip(rows, batch, strict=True):
        ids += row
        if last:
            ids.append(eos)
    return np.array(ids, dtype=np.int32)


def main() -> None:
    # An interrupt goes to the whole group: the parent decides, and closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a parent that is gone is no news
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tokenizer, eos = pickle.load(sys.stdin.buffer)
    while True:
        try:
            batch = pickle.load(sys.stdin.buffer)
        except EOFError:  # the parent is through, or gone
            return
        pickle.dump(encode(tokenizer, eos, batch), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
