"""What training leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.models import Checkpoint, Pair, choose_dtype, device_of, solo
from minillm.models.export import export_student


@dataclass(frozen=True)
class Run:
    """What a training run leaves: `metrics` (those of metrics.json), `history` (a row a rollout or validation, those of
    metrics.csv), and the pair, whose student is trained. `run_dir`: None where it was not kept."""

    metrics: dict[str, float]
    history: list[dict[str, float]]
    pair: Pair
    run_dir: Path | None

    @property
    def student(self) -> Student:
        return Student(self.pair)


class Student:
    """A trained student: its transformers model, but that it saves its tokenizer too, and adapters merged."""

    def __init__(self, pair: Pair):
        self._pair = pair

    def save_pretrained(self, directory: str | Path) -> None:
        """A directory for `from_pretrained`: weights, tokenizer, generation config, model card."""
        card = {"name": Path(directory).name, "made_by": "A student trained by MiniLLM.", "command": "minillm"}
        export_student(self._pair, Path(directory), card=card, figures={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pair.student, name)

    def __call__(self, *args, **kwargs):
        return self._pair.student(*args, **kwargs)


def pair_of_model(model: str | Path | Pair | Run) -> Pair:
    if isinstance(model, Pair | Run):
        return model.pair if isinstance(model, Run) else model
    device = device_of("auto")
    network, tokenizer = Checkpoint(str(model)).load(choose_dtype("auto", device), "sdpa")
    return solo(network.to(device), tokenizer)
