"""Keys and values of a batch whose rows come and go while it is decoded.

Every row ends at the same column and begins where its length says, so that one write serves all rows at each step,
a finished row's place is filled by the last row, and a new prompt is written in front of the next column.

Axes: B rows in use, h heads, C columns of the buffer, d head width.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


class NoCache(Cache):
    """For a pass over whole rows: it keeps nothing. Without any cache transformers looks at the positions for several
    sequences in one row, for which the host waits for an accelerator."""

    def __init__(self):
        super().__init__(layers=[])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _Layer(CacheLayerMixin):
    is_sliding = False  # all columns are kept; a sliding window is a matter of the mask

    def __init__(self, cache: RollingCache, keys: Tensor, values: Tensor):
        super().__init__()
        # Weak: a cycle would keep all of it until Python looks for cycles, which may be after the update.
        self.cache = weakref.proxy(cache)
        # In the type of attention's products: rotary families give float32 keys to a bfloat16 product.
        device = keys.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.keys, self.values = (
            like.new_zeros(cache.n_slots, like.shape[1], cache.capacity, like.shape[3], dtype=dtype)
            for like in (keys, values)
        )
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("rows enter by RollingCache.admit")

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        cache, n = self.cache, len(key_states)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if cache.window is None:
                buffer[:n, :, cache.end] = states[:, :, 0]
            else:
                buffer[:n].index_copy_(2, cache.window[1], states.to(buffer))
        return self.keys[:n, :, cache.seen], self.values[:n, :, cache.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.seen.stop - self.cache.seen.start - 1

    def get_max_length(self) -> int:
        return -1


class RollingCache(Cache):
    """Columns `first` to `end` are in use; the next token goes to `end`. `starts` holds each row's first column.
    `longest_prompt`, `longest_answer`: tokens of any row that will ever be admitted. `refills`: whether rows are
    admitted after the first step."""

    def __init__(self, n_slots: int, longest_prompt: int, longest_answer: int, refills: bool):
        super().__init__(layers=[])
        self.n_slots = n_slots
        self.longest_prompt, self.longest = longest_prompt, longest_prompt + longest_answer
        # Room for as many again with more to come, so that columns rarely have to move to the front.
        self.capacity = longest_prompt + longest_answer + (longest_answer if refills else 0)
        self.first = self.end = longest_prompt
        self.starts: list[int] = []
        # For a step for any column (CUDA graphs): the columns it reads, and in a tensor the number of its own.
        self.window: tuple[slice, Tensor] | None = None

    @property
    def seen(self) -> slice:
        """The columns that a step reads, its own included."""
        return slice(self.first, self.end + 1) if self.window is None else self.window[0]

    @property
    def even(self) -> bool:
        """Whether every row begins at the first column, so that no mask is needed."""
        return max(self.starts, default=self.first) == self.first

    def admit(self, prefilled: DynamicCache, lengths: list[int]) -> None:
        """Append rows from a cache of prompts that begin at column 0 and have these lengths."""
        rows = slice(len(self.starts), len(self.starts) + len(lengths))
        width = max(lengths)
        device = prefilled.layers[0].keys.device
        # Column c of a row comes from its prompt's token c - (width - length): from flush left to flush right.
        index = torch.arange(width) - (width - torch.tensor(lengths).unsqueeze(-1))
        index = index.clamp(min=0).to(device)[:, None, :, None]
        for number, layer in enumerate(prefilled.layers):
            if number == len(self.layers):
                self.layers.append(_Layer(self, layer.keys, layer.values))
            for ours, theirs in ((self.layers[number].keys, layer.keys), (self.layers[number].values, layer.values)):
                moved = theirs.gather(2, index.expand(-1, theirs.shape[1], -1, theirs.shape[3])).to(ours)
                ours[rows, :, self.end - width : self.end] = moved
        self.starts += [self.end - length for length in lengths]
        self.first = min(self.starts)

    def keep(self, slots: list[int]) -> None:
        """Keep the rows `slots`, in that order."""
        moved = [to for to, slot in enumerate(slots) if to != slot]
        if moved:
            used = slice(self.first, self.end)
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[moved, :, used] = buffer[[slots[to] for to in moved], :, used]
        self.starts = [self.starts[slot] for slot in slots]
        self.first = min(self.starts, default=self.end)

    def advance(self) -> None:
        """Move on after a forward pass of one token a row."""
        self.end += 1
        if self.end == self.capacity:
            self._to_front()

    def _to_front(self) -> None:
        end = max(self.longest_prompt, self.end - self.first)
        shift, n = self.end - end, len(self.starts)
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[:n, :, self.first - shift : end] = buffer[:n, :, self.first : self.end].clone()
        self.starts = [start - shift for start in self.starts]
        self.first, self.end = self.first - shift, end
