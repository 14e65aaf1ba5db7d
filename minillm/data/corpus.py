"""The pre-training corpus of L_PT: documents, tokenised, eos after each, packed into blocks that are read from disk.

The ids of the whole corpus lie in one file of the cache, named by content and settings. Blocks are rows of that file,
so one cache serves every block size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.common.console import say
from minillm.common.errors import DataError
from minillm.common.lock import locked
from minillm.data.documents import PIECE, Documents
from minillm.data.order import rows_at
from minillm.models.gguf import cache_dir

log = logging.getLogger(__name__)

_FORMAT = 3  # of the cache; another number makes all caches anew
_BATCH = 16  # pieces of text that are tokenised at a time
_LARGE = 500  # pieces from which on progress is shown: some seconds


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
    encoder = _Encoder(tokenizer)
    key = [_FORMAT, PIECE, documents.digest(), encoder.serialised, tokenizer.eos_token_id, n_vocab]
    folder = cache_dir() / "corpus" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    made = _made(folder, dtype)
    if made is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", _busy):
                if (made := _made(folder, dtype)) is None:
                    _clear(folder)
                    ids = _tokenised(documents, encoder, folder / "scratch", workers or _usable_cores())
                    made = _write(folder, ids, dtype, n_vocab, documents.source)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error}); set MINILLM_CACHE to a directory that can, with "
                f"{dtype.itemsize} bytes for a token of the corpus"
            ) from error
    file, n_tokens = made
    n_blocks = n_tokens // block_size
    if n_blocks == 0:
        raise DataError(
            f"{documents.source}: {n_tokens} tokens do not fill one block of {block_size}; use a larger "
            "data.corpus_file, a smaller data.block_size, or regulariser=none"
        )
    return Corpus(np.memmap(file, dtype, mode="r", shape=(n_blocks, block_size)))


def _made(folder: Path, dtype: np.dtype) -> tuple[Path, int] | None:
    """The file of ids and how many there are, which its name says; None where there is none, or a damaged one."""
    for file in folder.glob("*.tokens"):
        if file.stat().st_size == int(file.stem) * dtype.itemsize:
            return file, int(file.stem)
        log.warning("%s is damaged; the corpus is tokenised anew.", file)
    return None


def _clear(folder: Path) -> None:
    """Remove damaged files, and what a build that was killed has left."""
    for file in folder.glob("*.tokens"):
        file.unlink()  # a reader may have it mapped
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    (folder / "scratch").mkdir()


class _Encoder:
    """Pieces of text to ids, eos after each document; can be sent to another process. Control tokens that are written
    in a text stay text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.eos, self._slow, self._core = tokenizer.eos_token_id, None, None
        if tokenizer.is_fast:
            core = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            core.no_truncation()
            core.no_padding()
            self.serialised = core.to_str()
        else:
            self._slow = tokenizer
            with tempfile.TemporaryDirectory() as folder:
                self.serialised = [Path(file).read_bytes().hex() for file in sorted(tokenizer.save_pretrained(folder))]

    def __getstate__(self) -> dict:
        return vars(self) | {"_core": None}

    def __call__(self, batch: dict) -> dict:
        rows = self._slow_ids(batch["text"]) if self._slow is not None else self._fast_ids(batch["text"])
        ends = [[self.eos] if last else [] for last in batch["last"]]
        return {"ids": [row + end for row, end in zip(rows, ends, strict=True)]}

    def _fast_ids(self, texts: list[str]) -> list[list[int]]:
        if self._core is None:  # in each process: the serialised form does not hold the setting
            self._core = tokenizers.Tokenizer.from_str(self.serialised)
            self._core.encode_special_tokens = True
        return [each.ids for each in self._core.encode_batch_fast(texts, add_special_tokens=False)]

    def _slow_ids(self, texts: list[str]) -> list[list[int]]:
        tokenizer, options = self._slow, dict(add_special_tokens=False, verbose=False)
        # The token for what is unknown is none, unless it ends a text too.
        name = tokenizer.unk_token
        control = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {self.eos})
        rows = tokenizer(texts, **options)["input_ids"]
        for at, row in enumerate(rows):
            written = name is not None and name in texts[at]
            if written or not control.isdisjoint(row):  # in other texts it would split other added tokens too
                rows[at] = tokenizer(texts[at], split_special_tokens=True, **options)["input_ids"]
        return rows


def _tokenised(documents: Documents, encoder: _Encoder, folder: Path, workers: int) -> Iterator[np.ndarray]:
    """The ids of the corpus in parts, by `datasets`: text and ids are Arrow files in the folder."""

    def rows() -> Iterator[dict]:
        for text, last in documents.pieces():
            yield {"text": text, "last": last}

    if next(documents.pieces(), None) is None:
        return
    import datasets  # takes a second

    features = datasets.Features({"text": datasets.Value("string"), "last": datasets.Value("bool")})
    quiet = datasets.are_progress_bars_disabled()
    with _own_errors(documents.source):
        try:
            datasets.disable_progress_bars()
            pieces = datasets.Dataset.from_generator(
                rows, features=features, cache_dir=str(folder), fingerprint="pieces", writer_batch_size=_BATCH
            )
            if len(pieces) > _LARGE and not quiet:
                datasets.enable_progress_bars()
            encoded = pieces.map(
                encoder,
                batched=True,
                batch_size=_BATCH,
                writer_batch_size=_BATCH,
                num_proc=min(workers, -(-len(pieces) // _BATCH)) if len(pieces) > _BATCH and workers > 1 else None,
                remove_columns=["text", "last"],
                features=datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
                cache_file_name=str(folder / "ids.arrow"),
                new_fingerprint="ids",
                desc=f"Tokenising {documents.source}",
            )
        finally:
            if not quiet:
                datasets.enable_progress_bars()
    for table in encoded.with_format("arrow").iter(_BATCH):
        yield table["ids"].combine_chunks().flatten().to_numpy()


@contextmanager
def _own_errors(source: str) -> Iterator[None]:
    """Our own errors come out of `datasets` as they are; of a process that was killed, one message."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    except RuntimeError as error:
        raise DataError(
            f"{source}: a process that tokenises ended ({error}); if memory ran out, lower data.workers"
        ) from error


def _write(folder: Path, parts: Iterator[np.ndarray], dtype: np.dtype, n_vocab: int, source: str) -> tuple[Path, int]:
    """All ids, aside and then renamed: the file, and how many they are."""
    aside, n_tokens = folder / "scratch" / "tokens", 0
    with open(aside, "xb") as out:
        for ids_N in parts:
            if (largest := int(ids_N.max(initial=0))) >= n_vocab:
                raise DataError(f"{source}: token {largest} is outside the shared vocabulary of {n_vocab} rows")
            out.write(ids_N.astype(dtype).tobytes())
            n_tokens += len(ids_N)
        out.flush()
        os.fsync(out.fileno())
    file = folder / f"{n_tokens}.tokens"
    os.replace(aside, file)
    shutil.rmtree(folder / "scratch")
    return file, n_tokens


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _busy(note: str) -> None:
    say("Another process tokenises this corpus; waiting for it ...")
