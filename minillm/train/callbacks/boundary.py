"""When something that is due every N optimizer steps happens: at the first rollout boundary at or after its step."""

from __future__ import annotations

from typing import TypeVar

import lightning as L

from minillm.common.errors import check

Kind = TypeVar("Kind", bound=L.Callback)


class BoundaryCallback(L.Callback):
    """Knows the optimizer step before the current rollout. `every` counts MiniLLM's optimizer steps; null is never."""

    def __init__(self, every: int | None):
        check((every is None or every > 0, f"every={every}: wanted a positive number of optimizer steps, or null"))
        self.every = every
        self._before = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._before = module.step

    def due(self, module) -> bool:
        return self.every is not None and module.step // self.every > self._before // self.every


def find(trainer: L.Trainer, kind: type[Kind]) -> Kind | None:
    """The trainer's callback of that class, or None."""
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)
