"""What the public functions take and give: prompts, models, a finished run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from minillm.common.hub import repository
from minillm.data import PromptSet, Sources, read_records
from minillm.models import Checkpoint, Pair, choose_dtype, device_of, solo
from minillm.models.export import export_student
from minillm.train.card import card_text

Prompts = str | Path | Sequence[Mapping[str, Any] | str]


@dataclass(frozen=True)
class Run:
    """What a training run leaves: `metrics` (those of metrics.json), `history` (a row a rollout or validation, those of
    metrics.csv), and the pair, whose student is trained. `run_dir`: None where it was not kept. `card` makes the text
    of the student's model card."""

    metrics: dict[str, float]
    history: list[dict[str, float]]
    pair: Pair
    run_dir: Path | None
    card: Callable[..., str] | None = field(default=None, repr=False)

    @property
    def student(self) -> Student:
        return Student(self.pair, self.card)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Send the student to the Hugging Face hub, see `Student.push_to_hub`."""
        return self.student.push_to_hub(name, **options)


class Student:
    """A trained student: its transformers model, except that it saves its tokenizer too, and adapters merged.
    `save_pretrained(directory)` writes it, `push_to_hub("owner/name", private=True)` sends it to the Hugging Face hub;
    both take `license` and `language` for its model card."""

    def __init__(self, pair: Pair, card: Callable[..., str] | None = None):
        model = asdict(pair.loaded_by) if pair.loaded_by else {"student": pair.student.name_or_path}
        settings = {"model": model, "data": {"template": sources_of(pair, None).template}}
        self._pair, self._card = pair, card or partial(card_text, settings)

    def save_pretrained(self, directory: str | Path, **card: Any) -> None:
        """A directory for `from_pretrained`: weights, tokenizer, generation config, model card. `license` and
        `language` of the card: without them those of the base model's card, if it has any."""
        name = Path(directory).name
        export_student(self._pair, Path(directory), card=self._card(**{"name": name, "place": name} | card))

    def push_to_hub(self, name: str, *, private: bool = True, **card: Any) -> str:
        """Send what `save_pretrained` writes to the repository `owner/name` of the Hugging Face hub, which is made,
        private, unless it is there. Returns its address. `license`, `language`: see `save_pretrained`.

        Raises:
            ConfigError: the name, or no token. StorageError: the hub cannot be reached, or refuses.
        """
        send = repository(name, private=private)
        with tempfile.TemporaryDirectory(prefix="minillm-") as scratch:
            self.save_pretrained(folder := Path(scratch, "student"), name=name.split("/")[1], place=name, **card)
            return send(folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pair.student, name)

    def __call__(self, *args, **kwargs):
        return self._pair.student(*args, **kwargs)


def pair_of_model(model: str | Path | Pair | Run) -> Pair:
    """A pair, that of a run, or a student alone, loaded from a directory or hub id."""
    if isinstance(model, Pair | Run):
        return model.pair if isinstance(model, Run) else model
    device = device_of("auto")
    network, tokenizer = Checkpoint(str(model)).load(choose_dtype("auto", device), "sdpa")
    return solo(network.to(device), tokenizer)


def as_file(prompts: Prompts, folder: Path) -> str:
    """The name of a file with these prompts; rows are written into the folder, under a name that tells them apart."""
    if isinstance(prompts, str | Path):
        return str(prompts)
    rows = [{"instruction": each} if isinstance(each, str) else dict(each) for each in prompts]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file = folder / f"prompts-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def sources_of(pair: Pair, data: Mapping[str, Any] | None, **files: Any) -> Sources:
    template = "chat" if pair.tokenizer.chat_template else "paper"
    return Sources(**{"template": template} | files | dict(data or {}))


def prompts_of(pair: Pair, prompts: Prompts, data: Mapping[str, Any] | None) -> PromptSet:
    with tempfile.TemporaryDirectory(prefix="minillm-") as folder:
        records = read_records(as_file(prompts, Path(folder)), pair.teacher_names)
    return sources_of(pair, data).begun(pair.tokenizer).evaluation_prompts(records, pair, "prompts", teacher=True)
