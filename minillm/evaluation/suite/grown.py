"""An evaluation that goes on with other settings: what it measures may grow and shrink, how it measures may not change.

Settings are those of settings.json, see `Suite.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minillm.common.changes import changes, flat, within

_WHAT = ("models", "data.files", "suite")


def refused(before: Mapping, now: Mapping) -> list[str]:
    """What differs of how it is measured, and names whose content is another."""
    differing = changes(flat(before), flat(now))
    other = [name for name, was in before["content"].items() if now["content"].get(name, was) != was]
    return [
        *(str(each) for each in differing if not within(each.key, ("content", *_WHAT))),
        *(f"{name} has other content now" for name in other),
    ]


def told(before: Mapping, now: Mapping) -> str:
    """What differs of what is measured, in a line; empty where that is no more than an order of keys."""
    of = (
        ("models", before["models"], now["models"]),
        ("data.files", before["data"]["files"], now["data"]["files"]),
        ("suite", before["suite"], now["suite"]),
    )
    return "; ".join(part for each in of for part in _differing(*each))


def _differing(key: str, was: Any, now: Any) -> Iterator[str]:
    if was == now:
        return
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in was | now:
            yield from _differing(f"{key}.{name}", was.get(name), now.get(name))
    elif isinstance(was, list) and isinstance(now, list):
        added, gone = ([each for each in one if each not in other] for one, other in ((now, was), (was, now)))
        if added:
            yield f"{key} with {', '.join(map(str, added))}"
        if gone:
            yield f"{key} without {', '.join(map(str, gone))}"
        if not added and not gone:
            yield f"{key} in another order"
    elif was is None or now is None:
        value = now if was is None else was
        shown = key if isinstance(value, Mapping) else f"{key}={value}"
        yield f"{shown} {'added' if was is None else 'left out'}"
    else:
        yield f"{key} was {was!r}, is {now!r} now"
