"""The pre-training corpus of L_PT: documents, tokenised, eos after each, packed into blocks that are read from disk.

The ids of the whole corpus lie in one file of the cache, named by content and settings. Blocks are rows of that file,
so one cache serves every block size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.common.console import progress, say
from minillm.common.errors import DataError
from minillm.common.files import locked
from minillm.data.documents import PIECE, Documents
from minillm.data.order import rows_at
from minillm.data.text import PlainText
from minillm.models.gguf import cache_dir

log = logging.getLogger(__name__)

_FORMAT = 3  # of the cache; another number makes all caches anew
_BATCH = 32  # pieces of text that are tokenised at a time


@dataclass(frozen=True)
class Corpus:
    """Blocks [N, L] of a packed corpus, of integers; memory mapped."""

    blocks_NL: np.ndarray

    def digest(self) -> str:
        """Hash of its size and of a thousand blocks spread over it."""
        some = self.blocks_NL[:: max(1, len(self.blocks_NL) // 1000)]
        content = f"{self.blocks_NL.shape}".encode() + np.ascontiguousarray(some).tobytes()
        return hashlib.sha256(content).hexdigest()[:24]

    def batch(self, seed: int, step: int, size: int) -> Tensor:
        """[size, L] int64: the blocks of optimizer step `step`, in an order that is shuffled anew each pass."""
        rows = rows_at(seed, step * size, size, len(self.blocks_NL))
        return torch.from_numpy(self.blocks_NL[rows].astype(np.int64))


def build_corpus(documents: Documents, tokenizer: PreTrainedTokenizerBase, *, block_size: int, n_vocab: int) -> Corpus:
    """Tokenise and pack, or open what was made before from the same content and tokenizer; what does not fill a last
    block is left out. Memory does not grow with the corpus. A fast tokenizer uses all cores.

    Raises:
        DataError: the corpus does not fill one block, has tokens outside the shared vocabulary, or cannot be read; the
            cache cannot be written.
    """
    dtype = np.dtype("<u2" if n_vocab <= 2**16 else "<i4")
    plain, end = PlainText(tokenizer), [tokenizer.eos_token_id]
    key = [_FORMAT, PIECE, documents.digest(), plain.serialised(), end, n_vocab]
    folder = cache_dir() / "corpus" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    try:
        if (file := _made(folder, dtype)) is None:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", lambda note: say("Another process tokenises this corpus; waiting for it ...")):
                file = _made(folder, dtype) or _write(folder, documents, plain, end, dtype, n_vocab)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}); set MINILLM_CACHE to a directory that can, with "
            f"{dtype.itemsize} bytes for a token of the corpus"
        ) from error
    n_tokens = int(file.stem)
    n_blocks = n_tokens // block_size
    if n_blocks == 0:
        raise DataError(
            f"{documents.source}: {n_tokens} tokens do not fill one block of {block_size}; use a larger "
            "data.corpus_file, a smaller data.block_size, or regulariser=none"
        )
    return Corpus(np.memmap(file, dtype, mode="r", shape=(n_blocks, block_size)))


def _made(folder: Path, dtype: np.dtype) -> Path | None:
    """The file of ids, whose name says how many there are; None where there is none, or a damaged one."""
    for file in folder.glob("*.tokens"):
        if file.stat().st_size == int(file.stem) * dtype.itemsize:
            return file
        log.warning("%s is damaged; the corpus is tokenised anew.", file)
    return None


def _write(folder: Path, documents: Documents, plain: PlainText, end: list[int], dtype: np.dtype, n_vocab: int) -> Path:
    """All ids, `end` after each document, aside and then renamed: the file."""
    aside, n_tokens, n_bytes, stream = folder / "aside", 0, 0, documents.pieces()
    for left in (aside, *folder.glob("*.tokens")):  # of a build that was killed; damaged, though it may be mapped
        left.unlink(missing_ok=True)
    with open(aside, "xb") as out, progress(f"Tokenising {documents.source}", documents.size) as advance:
        while batch := list(islice(stream, _BATCH)):
            rows = plain.ids([text for text, _ in batch])
            for ids, (_, last) in zip(rows, batch, strict=True):
                ids_N = np.array(ids + end if last else ids)
                if (largest := int(ids_N.max(initial=0))) >= n_vocab:
                    raise DataError(
                        f"{documents.source}: token {largest} is outside the shared vocabulary of {n_vocab} rows"
                    )
                out.write(ids_N.astype(dtype).tobytes())
                n_tokens += len(ids_N)
            advance(n_bytes := n_bytes + sum(len(text.encode()) for text, _ in batch))
        out.flush()
        os.fsync(out.fileno())
    return aside.rename(folder / f"{n_tokens}.tokens")
