"""Short names of models, files and seeds, and lines that break between words only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from minillm.common.columns import headings


def labels(sources: Sequence[str]) -> dict[str, str]:
    """The last two parts of each path, or as many as make it unique; a hub id or package as it is."""
    return headings(sources, "/", least=2)


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
    if isinstance(name, str) and re.fullmatch(r"[^/.=,\[\](){}\s][^=,\[\](){}\s]*", name) and ".." not in name:
        return []
    return [f"run.name={name!r}: wanted a relative path without .. = , spaces or brackets"]
