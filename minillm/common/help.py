"""--help of a command: its own keys, as its yaml in conf/ states them, a line each."""

from __future__ import annotations

import re
from pathlib import Path

from minillm.common.columns import short
from minillm.common.console import say, show_facts

_LINE = re.compile(r"( *)(- )?(\w+):? ?(.*?)(?: *# (.*))?")  # indent, list item, key, value, comment


def show_help(conf: Path, name: str) -> None:
    """What conf/<name>.yaml says at its top, its keys with their defaults and comments, its config groups."""
    text = (conf / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    for line in lines:
        if not line.startswith("#"):
            break
        say(line.removeprefix("# "))
    keys, groups, above = [], [], ""
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        indent, _, key, value, comment = found.groups()
        if not indent:
            above = key
        if above == "hydra" or key.startswith("_") or not value or value.startswith("${hydra:"):
            continue
        value = re.sub(r"\$\{now:[^}]*}", "TIME", value)
        if above != "defaults":
            keys.append((f"{above}.{key}={short(value, 24)}" if indent else f"{key}={short(value, 24)}", comment or ""))
        elif key != "override":
            others = sorted(file.stem for file in (conf / key).glob("*.yaml") if file.stem != value)
            groups.append((f"{key}={value}", f"or {', '.join(others)}; its keys {key}.*: conf/{key}/{value}.yaml"))
    show_facts("Keys and their defaults (??? has none)", (), (), keys)
    if groups:
        show_facts("Config groups", (), (), groups)
    say("--cfg job shows the whole config, --hydra-help the flags of Hydra.")
