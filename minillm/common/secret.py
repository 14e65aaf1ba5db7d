"""Secrets must not get into a config: it is written to config.yaml, W&B and the model card."""

from __future__ import annotations

import os
import re

from minillm.common.changes import walk

SERVE_TOKEN = "MINILLM_SERVE_TOKEN"  # the environment variable with a teacher server's password, on both sides
_NAMES = re.compile(r"\w*(TOKEN|_KEY|SECRET|PASSWORD|PASSWD|_PWD|_PAT|CREDENTIALS?)", re.IGNORECASE)
_TOKENS = re.compile(  # Hugging Face, OpenAI, GitHub, AWS, Google, Slack, GitLab, JSON web tokens
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|xox[abeoprs]-[\w-]{10,}|glpat-[\w-]{20,}|eyJ[\w-]{6,}\.eyJ[\w-]{6,}\.[\w-]{10,}"
    r"|wandb_v1_\w{20,}|(?<![@\w/])[0-9a-f]{40}\b)"  # W&B; the second one is not a commit of the hub
    r"|://[^/\s:@]+:[^/\s@]+@|https?://[\w-]{16,}@"  # a password or token in an address
)


def names_secret(variable: str) -> bool:
    """Whether the value of an environment variable of this name is looked for in configs."""
    return _NAMES.fullmatch(variable) is not None


def secret_problems(plain: dict, command: str = "") -> list[str]:
    """Name the keys of a config whose text holds a secret, without showing it: the value of a variable that
    `names_secret`, of 8 characters or more and no path of a file or directory, or a text in the form of a token."""
    secrets, problems = _in_environment(), []
    texts = [(key, text) for key, text in walk(plain, "") if isinstance(text, str)]
    for key, text in (*texts, ("the command line", command)):
        what = [f"the value of {name}" for name in secrets if os.environ[name] in text]
        if what or _TOKENS.search(text):
            what = what[0] if what else "what looks like a token or password"
            problems.append(
                f"{key}: holds {what}, which would be written to config.yaml, W&B and the model card; wanted it in the "
                "environment only"
            )
    return problems


def redacted(text: str) -> str:
    """A message of any origin without the secrets that it repeats."""
    for name in _in_environment():
        text = text.replace(os.environ[name], f"[{name}]")
    return _TOKENS.sub("[secret]", text)


def _in_environment() -> list[str]:
    """The variables that hold a secret."""
    found = [name for name, value in os.environ.items() if names_secret(name) and len(value) >= 8]
    return [name for name in found if not os.path.exists(os.environ[name])]
