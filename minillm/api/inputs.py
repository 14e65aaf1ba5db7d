"""What the public functions take, as the package has it: prompts, models, settings."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from minillm.data import PromptSet, Sources, read_records
from minillm.models import Pair

Prompts = str | Path | Sequence[Mapping[str, Any] | str]


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
        records = read_records(as_file(prompts, Path(folder)))
    return sources_of(pair, data).begun(pair.tokenizer).evaluation_prompts(records, pair, "prompts")


def plain_of(value: Any) -> Any:
    """A settings object as plain values, its class in `_target_`, as conf/ has it."""
    if is_dataclass(value):
        own = {each.name: plain_of(getattr(value, each.name)) for each in fields(value)}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **own}
    if isinstance(value, Mapping):
        return {str(name): plain_of(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_of(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
