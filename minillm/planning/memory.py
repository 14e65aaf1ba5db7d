"""The project's model of memory: what a device needs in its two phases, and how much more would fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from minillm.common.errors import MinillmError, ModelError, first_line
from minillm.parallel import DeviceMesh, fake_mesh
from minillm.planning.case import Case
from minillm.planning.networks import fake_experts
from minillm.planning.rollout import FakeRollout
from minillm.planning.update import FakeUpdate

GB = 1e9


@dataclass(frozen=True)
class Memory:
    """GB (1e9 bytes) by purpose at the peak of each phase; `rollout` is empty where the data gives the answers. The
    libraries themselves and validation are not counted."""

    rollout: dict[str, float]
    update: dict[str, float]

    @property
    def total(self) -> float:
        return max(sum(self.rollout.values()), sum(self.update.values()))


class Device:
    """One rank of a case, on tensors without data; `fake_device` makes it."""

    def __init__(self, case: Case, mesh: DeviceMesh | None):
        self.case = case
        self.updates = FakeUpdate(case, mesh)
        models = {"student": self.updates.student, "teacher": self.updates.teacher}
        self.rollouts = FakeRollout(case, models, self.updates.moments) if case.rollouts else None

    def memory(self, case: Case | None = None) -> Memory:
        """What the device needs with the micro-batches and rollout batches of the case, or from now on of another that
        differs in those only, see `Case.sized`."""
        if case is not None:
            self.case = self.updates.case = case
            if self.rollouts:
                self.rollouts.case = case
        rollout = self.rollouts.peak(self.case.decoding_rows) if self.rollouts else {}
        return Memory(_gb(rollout), _gb(self.updates.peak(self.case.rows)))

    def largest_microbatch(self, budget: float) -> int:
        """Rows of answers, at most those of the rank's mini-batch; 0 where not one fits."""
        return largest(lambda rows: sum(self.updates.peak(rows).values()) / GB, self.case.local_minibatch, budget)

    def largest_rollout(self, budget: float) -> int:
        """Rows decoded at a time, at most those of the rank."""
        return largest(lambda rows: sum(self.rollouts.peak(rows).values()) / GB, self.case.local_rollouts, budget)


@contextmanager
def fake_device(case: Case) -> Iterator[Device]:
    """Raises ModelError: a model cannot run on tensors without data."""
    try:
        with fake_mesh(case.layout) as mesh, FakeTensorMode(), fake_experts(), warnings.catch_warnings():
            # OPT's layers return a view; nobody writes into it.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            yield Device(case, mesh)
    except MinillmError:
        raise
    except Exception as error:  # of a family's code, which may fail in any way
        sides = filter(None, (case.student, case.teacher))
        families = ", ".join(dict.fromkeys(side.config.model_type for side in sides))
        raise ModelError(
            f"{families}: cannot be planned. The planner runs a model on tensors without data, which this one does not "
            f"bear: {type(error).__name__}: {first_line(error)}. Plan with another family of the same size"
        ) from error


def measure(case: Case) -> Memory:
    """What a device of the case needs. It takes some seconds, whatever the sizes: nothing is computed or allocated."""
    with fake_device(case) as device:
        return device.memory()


def largest(peak: Callable[[int], float], limit: int, budget: float) -> int:
    """The largest n of 0 to `limit` whose peak, which grows with n about linearly, is within the budget; from 32 on it
    may be 3% less."""
    low, high = (1, peak(1)), (limit, peak(limit))
    if high[1] <= budget:
        return limit
    if low[1] > budget:
        return 0
    while high[0] - low[0] > max(1, low[0] // 32):
        slope = (high[1] - low[1]) / (high[0] - low[0])
        guess = low[0] + int((budget - low[1]) / slope) if slope > 0 else low[0]
        guess = min(max(guess, low[0] + 1), high[0] - 1)
        at = (guess, peak(guess))
        low, high = (at, high) if at[1] <= budget else (low, at)
    return low[0]


def _gb(sizes: dict[str, int]) -> dict[str, float]:
    return {name: size / GB for name, size in sizes.items() if size >= 1}
