"""Batches of text to token ids in parallel processes, in the order of the batches."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np

from minillm.common.errors import DataError
from minillm.data import worker
from minillm.data.worker import Batch, encode

BATCH = 2**20  # characters that are sent to a process at a time


def usable_cores() -> int:
    """Number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[Batch]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_all(tokenizer: Any, eos: int, stream: Iterable[Batch], workers: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield each batch with its ids, see `encode`. One worker, or a single batch, stays in this process.

    At most two batches a worker are in memory, however long the stream is.

    Raises:
        DataError: a worker ended (for want of memory, for example).
    """
    stream = iter(stream)
    first = list(islice(stream, 2))
    stream = chain(first, stream)
    if workers == 1 or len(first) < 2:
        for batch in stream:
            yield batch, encode(tokenizer, eos, batch)
        return
    pool, waiting = _Processes(tokenizer, eos, workers), deque()
    try:
        for batch in stream:
            waiting.append((batch, pool.submit(batch)))
            if len(waiting) == 2 * workers:
                batch, ids = waiting.popleft()
                yield batch, ids.result()
        while waiting:
            batch, ids = waiting.popleft()
            yield batch, ids.result()
    finally:
        pool.close()


class _Processes:
    """A thread for each process: it starts it, hands over a batch, waits for the ids.

    Plain child processes instead of a multiprocessing pool: a fork would copy a process with threads and perhaps a GPU,
    a spawn would import the training script; and these end when the pipe from us does, even after a kill -9 of ours.
    """

    def __init__(self, tokenizer: Any, eos: int, workers: int):
        self._setting = pickle.dumps((tokenizer, eos))
        self._threads = ThreadPoolExecutor(workers)
        self._of_thread = threading.local()
        self._started: list[subprocess.Popen] = []

    def submit(self, batch: Batch):
        return self._threads.submit(self._encode, batch)

    def _encode(self, batch: Batch) -> np.ndarray:
        process = getattr(self._of_thread, "process", None) or self._start()
        try:
            pickle.dump(batch, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise DataError(
                f"a process that tokenises the corpus ended (status {process.wait()}); see its message above; if "
                "memory ran out (status -9), lower data.workers; the same command goes on with what is not done yet"
            ) from error

    def _start(self) -> subprocess.Popen:
        # -P: minillm/data is not a place to import from.
        process = subprocess.Popen(
            [sys.executable, "-P", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._of_thread.process = process
        self._started.append(process)
        process.stdin.write(self._setting)
        return process

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._started:
            process.kill()  # all answers are in, or no longer wanted
        self._threads.shutdown()
        for process in self._started:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not sent is no loss
                    pipe.close()
            process.wait()
