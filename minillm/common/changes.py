"""Settings of two runs: what differs, and whether it makes other numbers. Settings have dotted keys, see `flat`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys, and groups with all below them, by what another value does to a run that goes on.
NOTHING = (
    "resume", "run", "logger", "profile", "preflight", "optimized_metric", "recipe", "callbacks.progress",
    "callbacks.checkpoints.every", "callbacks.record", "callbacks.median", "data.workers",
    "trainer.enable_model_summary", "optim.on_nonfinite", "optim.skip_limit",
)  # fmt: skip
ROUNDING = (
    "strategy", "linear_loss", "model.compile", "model.attention", "model.gradient_checkpointing",
    "model.teacher.offload", "regime.microbatch_tokens", "regime.teacher_states", "sampler.batch_size",
    "callbacks.validation.batch_size", "trainer.accelerator",
)  # fmt: skip
FIGURES = ("callbacks.validation.every",)  # when it is validated, and so which weights are the best
LONGER = "the run is longer"
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
    if within(key, NOTHING):
        return "the same numbers"
    if key == "data.date" and now is None:
        return "the run keeps its date"
    by_micro_batch = before.get("objective.denominator") == "micro_batch"
    if key == "regime.microbatch_size" and "regime.rollouts" in before and not by_micro_batch:
        return "other rounding"
    if within(key, ROUNDING) and not (by_micro_batch and key == "regime.microbatch_tokens"):
        return "other rounding"
    if within(key, FIGURES):
        return "the same training; perhaps another best checkpoint"
    longer = isinstance(was, int | float) and isinstance(now, int | float) and now > was
    if key in _LENGTH and longer and before.get("optim.schedule") == "constant" and _ends_whole(before):
        return LONGER
    return None


def _ends_whole(before: Mapping[str, Any]) -> bool:
    """Is the last rollout used up at max_steps? What is cut off there is never made up for."""
    if "regime.rollouts" not in before:
        return True
    values = [before.get(f"regime.{name}") for name in ("rollouts", "minibatch_size", "inner_epochs", "max_steps")]
    if not all(isinstance(each, int) and each > 0 for each in values):
        return False  # no config of ours
    rollouts, minibatch, epochs, steps = values
    per_rollout = rollouts // minibatch * epochs
    return per_rollout > 0 and steps % per_rollout == 0
