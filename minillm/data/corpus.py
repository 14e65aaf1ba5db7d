"""The pre-training corpus of L_PT: documents, tokenised, end tokens between, packed into blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillm.data.order import rows_at
from minillm.data.records import json_lines
from minillm.errors import DataError


def read_documents(source: str) -> list[str]:
    """`pydoc_topics` (Python's own language reference, in every CPython), a .jsonl file with the key text, or a text
    file (one document).

    Raises:
        DataError: naming file, line and key.
    """
    if source == "pydoc_topics":
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".json"):
        documents = []
        for where, row in json_lines(path):
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise DataError(f"{where}: key text: wanted the document's text")
            documents.append(row["text"])
    else:
        try:
            documents = [path.read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); change data.corpus_file to a text or .jsonl file, or pydoc_topics"
            ) from error
    return [text for text in documents if text.strip()]


@dataclass(frozen=True)
class Corpus:
    """Blocks [N, L] int32 of a packed corpus."""

    blocks_NL: Tensor

    def batch(self, seed: int, step: int, size: int) -> Tensor:
        """[size, L] int64: the blocks of optimizer step `step`, in an order that is shuffled anew each pass."""
        return self.blocks_NL[rows_at(seed, step * size, size, len(self.blocks_NL))].long()


def build_corpus(documents: list[str], tokenizer, *, block_size: int, n_vocab: int, source: str = "corpus") -> Corpus:
    """Tokenise and pack; what does not fill a last block is left out.

    Raises:
        DataError: the corpus does not fill one block, or has tokens outside the shared vocabulary.
    """
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"] if documents else []
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    n_blocks = len(stream) // block_size
    if n_blocks == 0:
        raise DataError(
            f"{source}: {len(stream)} tokens do not fill one block of {block_size}; use a larger data.corpus_file, a "
            "smaller data.block_size, or regulariser=none"
        )
    blocks = torch.tensor(stream[: n_blocks * block_size], dtype=torch.int32).view(n_blocks, block_size)
    if int(blocks.max()) >= n_vocab:
        raise DataError(f"{source}: token {int(blocks.max())} is outside the shared vocabulary of {n_vocab} rows")
    return Corpus(blocks)
