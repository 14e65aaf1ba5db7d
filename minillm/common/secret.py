"""Keys and tokens must not get into a config: it is written to config.yaml, W&B and the model card."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_NAMES = re.compile(r"(TOKEN|_KEY|SECRET|PASSWORD|PASSWD|_PWD|_PAT|CREDENTIALS?)$", re.IGNORECASE)
_SHAPES = {  # what the services' tokens begin with
    "a Hugging Face token": re.compile(r"hf_[A-Za-z0-9]{20,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "an AWS key": re.compile(r"\bAKIA[A-Z0-9]{16}\b"),
    "a W&B key": re.compile(r"\bwandb_v1_\w{20,}|(?<![@\w/])[0-9a-f]{40}\b"),  # not a commit of the hub
    "a Google key": re.compile(r"\bAIza[A-Za-z0-9_-]{30,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{10,}"),
    "a password in an address": re.compile(r"://[^/\s:@]+:[^/\s@]+@|https?://[A-Za-z0-9_-]{16,}@"),
}
_SHORTEST = 8  # a shorter value of the environment would be found in innocent texts


def names_secret(variable: str) -> bool:
    """Whether the value of an environment variable of this name is looked for in configs."""
    return re.fullmatch(r"\w+", variable) is not None and _NAMES.search(variable) is not None


def secret_problems(plain: dict, command: str = "") -> list[str]:
    """Keys of a config whose text holds a secret, by the environment's variables or by its form; never the text."""
    secrets = {value: name for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    problems = []
    for key, text in (*_texts(plain), ("the command line", command)):
        what = [f"the value of {name}" for value, name in secrets.items() if value in text]
        what += [name for name, shape in _SHAPES.items() if shape.search(text)]
        if what:
            problems.append(
                f"{key}: holds {what[0]}, which would be written to config.yaml, W&B and the model card; wanted it in "
                "the environment only"
            )
    return problems


def _texts(node, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _texts(value, f"{path}[{number}]")
    elif isinstance(node, str):
        yield path, node
