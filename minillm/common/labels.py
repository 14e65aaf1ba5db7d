"""Short names of models, files and seeds, and lines that break between words only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath


def labels(sources: Sequence[str]) -> dict[str, str]:
    """The last two parts of each path, or as many as make it unique; a hub id or package as it is."""
    parts = {source: [part for part in source.split("/") if part] or [source] for source in sources}
    out = {}
    for source, own in parts.items():
        n = 2
        while n < len(own) and any(other != source and there[-n:] == own[-n:] for other, there in parts.items()):
            n += 1
        out[source] = "/".join(own[-n:])
    # "x" and "/x", "a/b" and "/a/b": nothing short tells them apart
    return {source: label if list(out.values()).count(label) == 1 else source for source, label in out.items()}


def file_labels(files: Sequence[str]) -> dict[str, str]:
    """File names without folder, ending and a first `eval_`; the files as they are if those are not unique."""
    short = {file: PurePath(file).name.removesuffix(".jsonl").removeprefix("eval_") for file in files}
    return short if len(set(short.values())) == len(files) else {file: file for file in files}


def seed_name(seed: int | None) -> str:
    return "greedy" if seed is None else str(seed)


def folded(name: str, width: int) -> str:
    """Fold a text into lines of at most `width` where words allow it: it breaks after / _ - . : and blanks only."""
    lines = [""]
    for word in re.findall(r"[^/_\-.:\s]+[/_\-.:\s]*|[/_\-.:\s]+", name):
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def name_problems(name: object) -> list[str]:
    """What is wrong with a run.name, which is a path below runs/ and stands in overrides."""
    odd = not isinstance(name, str) or not name or re.search(r"[=,\[\](){}\s]", name)
    if odd or name.startswith(("/", ".")) or ".." in name:
        return [f"run.name={name!r}: wanted a relative path without .. = , spaces or brackets"]
    return []
