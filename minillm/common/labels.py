"""Short names of models, files, seeds and settings, and lines that break between words only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from minillm.common.numbers import count


def headings(names: Sequence[str], separator: str = ".", least: int = 1) -> dict[str, str]:
    """Shorten each name to as many of its last parts as make it unique, `least` or more."""
    parts = {name: [part for part in name.split(separator) if part] for name in names}
    ends = Counter(separator.join(each[-n:]) for each in parts.values() for n in range(1, len(each) + 1))
    return {
        name: next((end for n in range(least, len(each) + 1) if ends[end := separator.join(each[-n:])] == 1), name)
        for name, each in parts.items()
    }


def labels(sources: Sequence[str]) -> dict[str, str]:
    """The last two parts of each path, or as many as make it unique; a hub id or package as it is."""
    return headings(sources, "/", least=2)


def without_places(text: str) -> str:
    """A text to be shown to others: of absolute paths, which tell of a machine and its user, the last two parts."""
    part = r"[^\s/'\"<>|:;,()\[\]{}]+"
    return re.sub(rf"(?<![\w:/.~-])(?:~[\w.-]*)?/(?:{part}/)*({part}/{part})", r"…/\1", text)


def file_labels(files: Sequence[str]) -> dict[str, str]:
    """File names without folder, ending and a first `eval_`; as `labels` if those are not unique."""
    short = {file: PurePath(file).name.removesuffix(".jsonl").removeprefix("eval_") for file in files}
    return short if len(set(short.values())) == len(files) else labels(files)


def seed_name(seed: int | None) -> str:
    return "greedy" if seed is None else str(seed)


def short(value: Any, longest: int = 28) -> str:
    """A setting as text; a long one, such as a path, by both of its ends."""
    text = count(value, 4) if isinstance(value, float) else str(value)
    if value is None or isinstance(value, bool):
        text = {True: "true", False: "false", None: "null"}[value]
    end = (longest - 2) // 2
    return text if len(text) <= longest else f"{text[: longest - 3 - end]}...{text[-end:]}"


def shorts(values: Sequence[Any], longest: int) -> list[str]:
    """The texts of a column, cut to `longest` characters, or to more where different ones would look the same."""
    full = [short(value, 10**6) for value in values]
    while len(set(cells := [short(text, longest) for text in full])) < len(set(full)):
        longest += 4
    return cells


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
