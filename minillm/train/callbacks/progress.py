"""How far a run has come, and warnings if it goes wrong; docs/troubleshooting.md says what to do."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L

from minillm.common.console import say
from minillm.common.numbers import count

_SHOWN = {
    "start/loss": "loss",
    "train/loss": "loss",
    "train/pretrain": "+ L_PT",
    "train/single": "KL",
    "rollout/length": "length",
    "time/tokens_per_second": "tok/s",
    "memory/peak_gb": "GB",
}
_PHASES = ("rollout", "score", "update")
_N = 5  # the mean of the last 5 rollouts is compared with that of the first 5
_LONGER, _SHORTER, _CUT = 1.5, 0.5, 0.1  # factors of the length; increase of the share of answers that are cut off


def _figures(metrics: dict[str, float]) -> str:
    """The newest round in one line of 80 columns; its end is explained once, by `on_train_start`."""
    figures = [f"{name} {count(metrics[key])}" for key, name in _SHOWN.items() if key in metrics]
    shares = [f"{100 * metrics[f'time/share_{name}']:.0f}" for name in _PHASES if f"time/share_{name}" in metrics]
    return "  ".join([*figures, *(["/".join(shares) + "%"] if shares else [])])


class Progress(L.Callback):
    """One line a rollout (supervised: an optimizer step), and warnings where its figures are odd."""

    def __init__(self):
        self._alarms = Alarms()

    def on_train_start(self, trainer, module) -> None:
        on_policy = "start" in module.stages
        shares = "; a/b/c% the share of the time in rollout, scoring and update" if on_policy else ""
        corpus = "loss is the objective's, L_PT is added to it; " if on_policy and module.regulariser.on else ""
        say(f"Each line: {corpus}GB is the peak memory so far{shares}.")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.at_boundary:
            where = f"step {module.step}/{module.n_steps}"
            if module.step == 0:
                where = f"start {module.start_step}/{module.start.steps}"
            say(f"{where}  {_figures(module.metrics)}")
            for text in self._alarms(module.metrics):
                say(f"WARNING: {text} (docs/troubleshooting.md)")


class Alarms:
    """Gives each warning once. Lengths are compared with those of the first rollouts that it gets."""

    def __init__(self):
        self._seen: list[tuple[float, float]] = []
        self._given: set[str] = set()

    def __call__(self, metrics: Mapping[str, float]) -> list[str]:
        """The new warnings after a round with these metrics."""
        found = {}
        if metrics.get("optim/grad_norm") == 0:
            found["gradient"] = (
                "all gradients are 0, so that nothing is learned. Likely causes: optim.learning_rate (in the "
                "supervised start: start.learning_rate) is so large that the student gives all tokens the same "
                "probability, or one token all of it; or the student equals the teacher"
            )
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
