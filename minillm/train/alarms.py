"""Warnings of a run that goes wrong, from the figures of its rollouts; docs/troubleshooting.md says what to do."""

from __future__ import annotations

from collections.abc import Mapping

_N = 5  # rollouts whose mean is compared
_LONGER, _SHORTER, _CUT = 1.5, 0.5, 0.1


class Alarms:
    """Each warning comes once. Lengths are compared with those of the first rollouts that it is given."""

    def __init__(self):
        self._seen: list[tuple[float, float]] = []
        self._given: set[str] = set()

    def __call__(self, metrics: Mapping[str, float]) -> list[str]:
        """New warnings, after a round with these metrics."""
        found = {}
        if metrics.get("optim/grad_norm") == 0:
            found["gradient"] = "the gradient is 0: nothing is learned. Do student and teacher differ?"
        if "rollout/length" in metrics:
            self._seen.append((metrics["rollout/length"], metrics["rollout/truncated"]))
            if len(self._seen) >= 2 * _N:
                found |= self._lengths()
        new = {name: text for name, text in found.items() if name not in self._given}
        self._given |= new.keys()
        return list(new.values())

    def _lengths(self) -> dict[str, str]:
        (length, cut), (before, cut_before) = (
            [sum(column) / _N for column in zip(*part, strict=True)] for part in (self._seen[-_N:], self._seen[:_N])
        )
        change = f"answers have {length:.0f} tokens and had {before:.0f}"
        if length > _LONGER * before and cut > cut_before + _CUT:
            return {"longer": f"{change}, and {cut:.0%} are cut off (before: {cut_before:.0%}): length explosion"}
        if length < _SHORTER * before:
            return {"shorter": f"{change}: collapse to short answers"}
        return {}
