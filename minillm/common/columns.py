"""Which settings to show of runs side by side, and how to write them in few characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.common.changes import ABSENT
from minillm.common.numbers import count


def telling(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """A small set of `keys`, found greedily, whose values distinguish the runs as well as all keys do."""
    chosen: list[str] = []

    def groups(names: Sequence[str]) -> int:
        return len({tuple(repr(each.get(name, ABSENT)) for name in names) for each in settings})

    while groups(chosen) < groups(keys):
        chosen.append(max(keys, key=lambda key: groups([*chosen, key])))
    return chosen


def derived(key: str) -> bool:
    """Whether a setting follows from others: the class of a choice, the shape of a model."""
    return "_target_" in key or ".architecture." in key


def headings(names: Sequence[str], separator: str = ".", least: int = 1) -> dict[str, str]:
    """Shorten each name to as many of its last parts as make it unique, `least` or more."""
    parts = {name: [part for part in name.split(separator) if part] for name in names}
    ends = Counter(separator.join(each[-n:]) for each in parts.values() for n in range(1, len(each) + 1))
    return {
        name: next((end for n in range(least, len(each) + 1) if ends[end := separator.join(each[-n:])] == 1), name)
        for name, each in parts.items()
    }


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
