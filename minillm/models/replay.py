"""Decoding steps as CUDA graphs. A step of few rows is some thousand small kernels, and calling them from Python takes
many times as long as they do; a graph of them is one call.

Axes: B rows, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm.common.console import say
from minillm.common.errors import first_line
from minillm.models.kv_cache import RollingCache

Step = Callable[[Tensor, Tensor], Tensor]
COLUMNS = 128  # a window begins and ends at a multiple: the smaller, the less is read in vain and the more is captured


class _Window(NamedTuple):
    """What a captured step can not change: rows, and the columns [first, end) that it reads."""

    rows: int
    first: int
    end: int


class ReplayedSteps:
    """`LanguageModel.next_hidden` of one cache: a window's first step is plain, its second is captured, all others are
    replayed. The column to write and each row's first column are read from tensors.

    The first replay at another column than its capture's is compared with the plain step: a family whose code takes the
    column from a Python number would repeat the old one. If they differ, or nothing can be captured, a warning is
    printed and the plain steps go on.

    Args:
        model: a `LanguageModel`. plain: (ids_B, starts_B) -> hidden states [B, H], and moves the cache on.
        capture: from a function without arguments, whose tensors stay where they are, to one that repeats its kernels.
    """

    def __init__(self, model: Any, cache: RollingCache, plain: Step, capture: Callable[..., Callable]):
        self.model, self.cache, self.plain, self.capture = model, cache, plain, capture
        zeros = torch.zeros(cache.n_slots, dtype=torch.long, device=model.device)
        self.ids_B, self.starts_B, self.column = zeros, zeros.clone(), zeros[:1].clone()
        self.made: dict[_Window, Callable[[], Tensor] | None] = {}
        self.captured_at: dict[_Window, int] = {}
        self.compared = False

    def __call__(self, ids_B: Tensor, starts_B: Tensor) -> Tensor:
        if not self.model.replay:
            return self.plain(ids_B, starts_B)
        n, end = len(ids_B), self.cache.end
        self.ids_B[:n] = ids_B
        # A place that no row is in sees its own new column only.
        self.starts_B.fill_(end)
        self.starts_B[:n] = starts_B
        self.column.fill_(end)
        window = self._window(n)
        try:
            hidden_BH = self._step(window)[:n]
        except torch.OutOfMemoryError:  # without graphs it would be no less
            raise
        except RuntimeError as error:
            self._give_up(first_line(error))
            return self.plain(ids_B, starts_B)
        if not self.compared and self.captured_at.get(window, end) != end:
            self.compared = True
            return self._compare(hidden_BH, ids_B, starts_B)
        self.cache.advance()
        return hidden_BH

    def _window(self, n: int) -> _Window:
        rows = self.cache.n_slots
        while rows // 2 >= n:
            rows //= 2
        first, end = self.cache.first // COLUMNS * COLUMNS, -(-(self.cache.end + 1) // COLUMNS) * COLUMNS
        return _Window(rows, first, min(end, self.cache.capacity))

    def _step(self, window: _Window) -> Tensor:
        """Hidden states of all the window's rows."""
        if window not in self.made:
            self.made[window] = None
            return aside(partial(self._forward, window))
        if self.made[window] is None:
            self.made[window] = self.capture(partial(self._forward, window))
            self.captured_at[window] = self.cache.end
        return self.made[window]()

    def _forward(self, window: _Window) -> Tensor:
        rows = slice(window.rows)
        self.cache.window = (slice(window.first, window.end), self.column)
        try:
            return self.model.any_next_hidden(self.ids_B[rows], self.cache, self.starts_B[rows], self.column)
        finally:
            self.cache.window = None

    def _compare(self, replayed_BH: Tensor, ids_B: Tensor, starts_B: Tensor) -> Tensor:
        plain_BH = self.plain(ids_B, starts_B)
        error = (replayed_BH - plain_BH).abs().max() / plain_BH.abs().max()
        half = plain_BH.dtype.itemsize == 2 or torch.is_autocast_enabled(plain_BH.device.type)
        # Rounding goes either way; a factor on all of them is something else.
        bias = ((replayed_BH * plain_BH).sum() / plain_BH.square().sum() - 1).abs()
        if not (error <= (5e-2 if half else 1e-3) and bias <= (2e-2 if half else 1e-3)):
            self._give_up(
                f"hidden states differ from a plain step's by {error:.2g} of the largest, and by {bias:.2g} in size"
            )
        return plain_BH

    def _give_up(self, why: str) -> None:
        self.model.replay = False
        self.made.clear()
        family = self.model.network.config.model_type
        say(f"WARNING: {family}: decoding without CUDA graphs from now on, which is slower. Cause: {why}")


@lru_cache
def _stream(device: int) -> torch.cuda.Stream:
    """One for all captures: a library's workspace is of a stream, and is never given back."""
    return torch.cuda.Stream(device)


@contextmanager
def _capture_stream() -> Iterator[None]:
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def aside(forward: Callable[[], Tensor]) -> Tensor:
    """Run on the stream of captures, so that what libraries set up at their first call is there before a capture."""
    with _capture_stream() if torch.cuda.is_available() else nullcontext():
        return forward()


class Pool:
    """Memory for the graphs of one model, kept by a graph of nothing: without one a pool cannot be used again, and new
    ones for each rollout would pile up."""

    @cached_property
    def handle(self) -> tuple[int, int]:
        handle, self._keeper = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        with _recorded(self._keeper, handle):
            torch.zeros(1, device="cuda")
        return handle


def capture(forward: Callable[[], Tensor], pool: Pool) -> Callable[[], Tensor]:
    """A CUDA graph of `forward`, which must have run `aside` before. Graphs of one pool are replayed one at a time, and
    what one gave is read before the next."""
    graph = torch.cuda.CUDAGraph()
    with _recorded(graph, pool.handle):
        result = forward()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@contextmanager
def _recorded(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> Iterator[None]:
    """torch.cuda.graph would empty the allocator's cache each time."""
    with _capture_stream():
        graph.capture_begin(pool, capture_error_mode="thread_local")  # other threads may copy batches meanwhile
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # "failed due to a previous error": that one is of interest
                graph.capture_end()
            raise
        graph.capture_end()
