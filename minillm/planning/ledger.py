"""Bytes of all tensors that are alive, by purpose, and what they were at their peak."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

WEIGHTS = ("student", "gathered")
HALF = "half-type weights"


class Ledger(TorchDispatchMode):
    """While it is on, it counts every storage that an operation makes until the storage dies, under the purpose that is
    set at that moment; storages that FSDP grows and shrinks are counted too. It works on fake tensors, which have sizes
    and no data.

    `live` and `peak`: bytes by purpose. `calls`: how many operations made something new. Of a DTensor only this rank's
    part is counted.
    """

    def __init__(self):
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.calls = 0
        self._most = self._total = 0
        self._purpose = "other"
        self._known = WeakIdKeyDictionary()  # storage -> [purpose, bytes]

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        before, self._purpose = self._purpose, name
        try:
            yield
        finally:
            self._purpose = before

    def claim(self, tensors: Iterable[Tensor], purpose: str) -> None:
        """Count tensors that were there before, or under another purpose from now on."""
        for tensor in tensors:
            entry = self._note(tensor)
            self._add(entry[0], -entry[1])
            entry[0] = purpose
            self._add(purpose, entry[1])

    def add(self, purpose: str, n_bytes: int) -> None:
        """Count bytes of something that exists on the device and has no tensor here."""
        self._add(purpose, n_bytes)

    def restart(self) -> None:
        """The peak begins at what is alive now."""
        gc.collect()  # caches and their layers name one another
        self._most, self.peak, self.calls = self._total, dict(self.live), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls += function.namespace == "aten" and not function.is_view
        purpose = self._purpose
        if function is torch.ops.aten._to_copy.default and self._of_weights(args[0]):
            purpose = HALF
        elif function.namespace in ("c10d", "_c10d_functional", "fsdp"):
            purpose = "gathered"
        for each in tree_iter(out):
            if isinstance(each, Tensor):
                self._note(each, purpose)
        if function.namespace == "fsdp" and "out" in (kwargs or {}):  # where gathered weights are put
            self.claim(kwargs["out"], "gathered")
        return out

    def __enter__(self):
        self._resize = resize = torch.UntypedStorage.resize_

        def resize_and_note(storage, size):
            out = resize(storage, size)
            self._note_storage(storage, "gathered")
            return out

        torch.UntypedStorage.resize_ = resize_and_note
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)

    def _of_weights(self, tensor: Tensor) -> bool:
        entry = self._known.get(_local(tensor).untyped_storage())
        return entry is not None and entry[0] in WEIGHTS

    def _note(self, tensor: Tensor, purpose: str | None = None) -> list:
        return self._note_storage(_local(tensor).untyped_storage(), purpose or self._purpose)

    def _note_storage(self, storage: torch.UntypedStorage, purpose: str) -> list:
        size, entry = storage.nbytes(), self._known.get(storage)
        if entry is None:
            entry = self._known[storage] = [purpose, 0]
            weakref.finalize(storage, self._gone, entry)
        if entry[1] != size:
            self._add(entry[0], size - entry[1])
            entry[1] = size
        return entry

    def _gone(self, entry: list) -> None:
        self._add(entry[0], -entry[1])

    def _add(self, purpose: str, n_bytes: int) -> None:
        self.live[purpose] += n_bytes
        self._total += n_bytes
        if self._total > self._most:
            self._most, self.peak = self._total, dict(self.live)


def _local(tensor: Tensor) -> Tensor:
    return getattr(tensor, "_local_tensor", tensor)
