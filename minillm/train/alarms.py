"""Warnings from the figures of rollouts if a run goes wrong; docs/troubleshooting.md says what to do."""

from __future__ import annotations

from collections.abc import Mapping

_N = 5  # the mean of the last 5 rollouts is compared with that of the first 5
_LONGER, _SHORTER, _CUT = 1.5, 0.5, 0.1  # factors of the length; increase of the share of answers that are cut off


class Alarms:
    """Gives each warning once. Lengths are compared with those of the first rollouts that it gets."""

    def __init__(self):
        self._seen: list[tuple[float, float]] = []
        self._given: set[str] = set()

    def __call__(self, metrics: Mapping[str, float]) -> list[str]:
        """The new warnings after a round with these metrics."""
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
