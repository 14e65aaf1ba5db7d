"""Settings of two runs: what differs, and whether it makes other numbers. Settings have dotted keys, see `flat`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Keys, and groups with all below them, by what another value does to a run that goes on.
NOTHING = (
    "resume", "run", "logger", "preflight", "optimized_metric", "recipe", "callbacks.progress",
    "callbacks.checkpoints.every", "callbacks.record",
    "trainer.enable_model_summary", "optim.on_nonfinite", "optim.skip_limit",
    "model.teacher.patience", "model.teacher.timeout", "sampler.directory", "sampler.patience", "sampler.timeout",
)  # fmt: skip
ROUNDING = (
    "strategy", "linear_loss", "model.compile", "model.attention", "model.gradient_checkpointing",
    "model.teacher.offload", "regime.microbatch_tokens", "regime.microbatch_size",
    "regime.teacher_states", "sampler.batch_size", "sampler.url", "sampler.tolerance",
    "callbacks.validation.batch_size", "trainer.accelerator", "data.teacher_cache",
)  # fmt: skip
FIGURES = ("callbacks.validation.every",)  # when it is validated, and so which weights are the best
LONGER = "the run is longer"
_MICRO_BATCH = ("regime.microbatch_tokens", "regime.microbatch_size")  # may be part of the objective
_LENGTH = ("regime.max_steps", "regime.epochs")
ABSENT = "absent"


@dataclass(frozen=True)
class Change:
    """One differing setting. `effect` is what it does to a run that goes on; None: it would change the numbers."""

    key: str
    was: Any
    now: Any
    effect: str | None

    def __str__(self) -> str:
        return f"{self.key} was {self.was!r}, is {self.now!r} now"


def flat(node: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; an empty mapping stays one."""
    out = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every node at and below a plain one, with its path, such as `a.b[0]`."""
    yield path.removeprefix("."), node
    if isinstance(node, Mapping | list):
        for key, below in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from walk(below, f"{path}.{key}" if isinstance(node, Mapping) else f"{path}[{key}]")


def within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two flat settings, by key."""
    return [
        Change(key, was, is_now, _effect(key, was, is_now, before))
        for key in sorted(before.keys() | now.keys())
        if (was := before.get(key, ABSENT)) != (is_now := now.get(key, ABSENT))
    ]


def _effect(key: str, was: Any, now: Any, before: Mapping[str, Any]) -> str | None:
    on_policy = "regime.rollouts" in before
    if within(key, NOTHING) or (key == "data.date" and now is None):  # the run keeps its date
        return "the same numbers"
    if key == "model.teacher.url" and was and now:  # of the same model: its digest is compared
        return "other rounding"
    if key in _MICRO_BATCH and (before.get("objective.denominator") == "micro_batch" or not on_policy):
        return None
    if within(key, ROUNDING):
        return "other rounding"
    if within(key, FIGURES):
        return "the same training; perhaps another best checkpoint"
    numbers = isinstance(was, int | float) and isinstance(now, int | float)
    if key in _LENGTH and numbers and now > was and before.get("optim.schedule") == "constant":
        return LONGER if not on_policy or _ends_whole(before) else None
    return None


def _ends_whole(before: Mapping[str, Any]) -> bool:
    """Is the last rollout used up at max_steps? What is cut off there is never made up for."""
    names = ("rollouts", "minibatch_size", "inner_epochs", "max_steps")
    rollouts, minibatch, epochs, steps = (before.get(f"regime.{name}") for name in names)
    try:
        return steps % (rollouts // minibatch * epochs) == 0
    except (TypeError, ZeroDivisionError):  # no config of ours
        return False
