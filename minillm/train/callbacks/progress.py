"""How far a run has come."""

from __future__ import annotations

import lightning as L

from minillm.common.console import say
from minillm.common.numbers import count
from minillm.train.alarms import Alarms

_SHOWN = {
    "start/loss": "loss",
    "train/loss": "loss",
    "train/single": "KL",
    "train/pretrain": "corpus",
    "rollout/length": "length",
    "time/tokens_per_second": "tok/s",
    "memory/peak_gb": "GB",
}
_PHASES = ("rollout", "score", "update")


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
        shares = "; a/b/c% the share of the time in rollout, scoring and update" if "start" in module.stages else ""
        say(f"Each line: GB is the peak of memory{shares}.")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.at_boundary:
            where = f"step {module.step}/{module.n_steps}"
            if module.step == 0:
                where = f"start {module.start_step}/{module.start.steps}"
            say(f"{where}  {_figures(module.metrics)}")
            for text in self._alarms(module.metrics):
                say(f"WARNING: {text} (docs/troubleshooting.md)")
