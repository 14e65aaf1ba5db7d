"""The pre-training corpus of L_PT: documents, tokenised, eos after each, packed into blocks that are read from disk.

A folder of the cache, named by content and settings, holds `tokens.bin`, the ids of the whole corpus in order, and
`manifest.json`, how far it is. Blocks are rows of that file, so one cache serves every block size, and neither the
number of workers nor a kill in between changes a token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.common.console import say
from minillm.common.errors import DataError
from minillm.common.files import write_whole
from minillm.common.lock import locked
from minillm.data.documents import PIECE, Documents
from minillm.data.order import rows_at
from minillm.data.tokenise import batches, encode_all, usable_cores
from minillm.data.worker import Batch, portable
from minillm.models.gguf import cache_dir

log = logging.getLogger(__name__)

_FORMAT = 2  # of the cache; another number makes all caches anew
_COMMIT = 2**24  # characters after which what is done survives a kill
_SAY = 30  # seconds between two lines about a long build


@dataclass(frozen=True)
class Corpus:
    """Blocks [N, L] of a packed corpus, of integers; memory mapped."""

    blocks_NL: np.ndarray

    def digest(self) -> str:
        """Hash of its size and of a thousand blocks spread over it."""
        some = self.blocks_NL[:: max(1, len(self.blocks_NL) // 1000)]
        return hashlib.sha256(f"{self.blocks_NL.shape}".encode() + np.ascontiguousarray(some).tobytes()).hexdigest()[
            :24
        ]

    def batch(self, seed: int, step: int, size: int) -> Tensor:
        """[size, L] int64: the blocks of optimizer step `step`, in an order that is shuffled anew each pass."""
        rows = rows_at(seed, step * size, size, len(self.blocks_NL))
        return torch.from_numpy(self.blocks_NL[rows].astype(np.int64))


def build_corpus(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int,
    n_vocab: int,
    workers: int | None = None,
) -> Corpus:
    """Tokenise and pack, or open what was made before from the same content and tokenizer; what does not fill a last
    block is left out. Memory does not grow with the corpus.

    Args:
        workers: processes that tokenise; None: one for each usable core.

    Raises:
        DataError: the corpus does not fill one block, has tokens outside the shared vocabulary, or cannot be read; the
            cache cannot be written.
    """
    dtype = np.dtype("<u2" if n_vocab <= 2**16 else "<i4")
    core = portable(tokenizer)
    folder = cache_dir() / "corpus" / _key(documents, tokenizer, core, n_vocab)
    progress = _progress(folder, dtype)
    if not progress.complete:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", _busy):
                progress = _progress(folder, dtype)
                if not progress.complete:
                    stream = batches(islice(documents.pieces(), progress.pieces, None))
                    encoded = encode_all(core, tokenizer.eos_token_id, stream, workers or usable_cores())
                    progress = _write(folder, progress, encoded, dtype, n_vocab=n_vocab, source=documents.source)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error}); set MINILLM_CACHE to a directory that can, with "
                f"{dtype.itemsize} bytes for a token of the corpus"
            ) from error
    n_blocks = progress.tokens // block_size
    if n_blocks == 0:
        raise DataError(
            f"{documents.source}: {progress.tokens} tokens do not fill one block of {block_size}; use a larger "
            "data.corpus_file, a smaller data.block_size, or regulariser=none"
        )
    return Corpus(np.memmap(folder / "tokens.bin", dtype, mode="r", shape=(n_blocks, block_size)))


@dataclass(frozen=True)
class _Progress:
    """What `manifest.json` holds: pieces of text that are done, and tokens in the file that come from them."""

    pieces: int = 0
    tokens: int = 0
    complete: bool = False


def _key(documents: Documents, tokenizer: PreTrainedTokenizerBase, core: Any, n_vocab: int) -> str:
    if tokenizer.is_fast:
        serialised = core.to_str()
    else:
        with tempfile.TemporaryDirectory() as folder:
            serialised = [Path(file).read_bytes().hex() for file in sorted(tokenizer.save_pretrained(folder))]
    parts = [_FORMAT, PIECE, documents.digest(), serialised, tokenizer.eos_token_id, n_vocab]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _progress(folder: Path, dtype: np.dtype) -> _Progress:
    """How much of the cache is done; nothing if its files do not fit together."""
    manifest, file = folder / "manifest.json", folder / "tokens.bin"
    if not (manifest.exists() and file.exists()):
        return _Progress()
    try:
        progress = _Progress(**json.loads(manifest.read_text()))
        spare = file.stat().st_size - progress.tokens * dtype.itemsize
    except (ValueError, TypeError):
        spare = -1
    # An unfinished file may be longer: what came after the last commit is written again.
    if spare == 0 or (spare > 0 and not progress.complete):
        return progress
    log.warning("%s is damaged; the corpus is tokenised anew.", folder)
    return _Progress()


def _write(
    folder: Path,
    done: _Progress,
    encoded: Iterator[tuple[Batch, np.ndarray]],
    dtype: np.dtype,
    *,
    n_vocab: int,
    source: str,
) -> _Progress:
    """Append the batches that follow `done`. Ids reach the disk before the manifest that counts them."""
    if done == _Progress():
        (folder / "tokens.bin").unlink(missing_ok=True)  # a reader may have the damaged one mapped
    pieces, tokens, since, began, said = done.pieces, done.tokens, 0, time.monotonic(), time.monotonic()
    with open(folder / "tokens.bin", "ab") as file, closing(encoded):
        file.truncate(tokens * dtype.itemsize)
        for batch, ids_N in encoded:
            largest = int(ids_N.max(initial=0))
            if largest >= n_vocab:
                raise DataError(f"{source}: token {largest} is outside the shared vocabulary of {n_vocab} rows")
            file.write(ids_N.astype(dtype).tobytes())
            pieces, tokens = pieces + len(batch), tokens + len(ids_N)
            since += sum(len(text) for text, _ in batch)
            if since >= _COMMIT:
                _commit(folder, file, _Progress(pieces, tokens))
                since = 0
            if time.monotonic() - said > _SAY:
                said = time.monotonic()
                rate = (tokens - done.tokens) / (said - began)
                say(f"Tokenising {source}: {tokens / 1e6:,.1f} M tokens, {rate / 1e6:.2f} M a second")
        done = _Progress(pieces, tokens, complete=True)
        _commit(folder, file, done)
    return done


def _commit(folder: Path, file, progress: _Progress) -> None:
    file.flush()
    os.fsync(file.fileno())
    write_whole(folder / "manifest.json", json.dumps(asdict(progress)) + "\n")


def _busy(note: str) -> None:
    say("Another process tokenises this corpus; waiting for it ...")
