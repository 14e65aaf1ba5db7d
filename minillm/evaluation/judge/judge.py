"""A language model as judge: rates answer and reference 1 to 10 in one call (the paper's GPT-4 score)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.common.errors import ConfigError, JudgeError
from minillm.common.secret import names_secret, secret_problems
from minillm.evaluation.judge.verdict import QUESTION, REMINDER, Item, Ratings, swapped

_AT_LEAST = {"timeout": 1e-3, "deadline": 1e-3, "retries": 0, "asks": 1, "concurrency": 1, "give_up": 1}


@dataclass(frozen=True)
class Judge:
    """Which judge, and how it is asked: docs/judge.md. The key is in the environment variable that `key_variable` names
    (None: no key is sent), never in a field.

    Raises:
        ConfigError: every wrong setting, the key that is not there among them.
    """

    base_url: str
    model: str
    cache_dir: str | Path
    key_variable: str | None = "OPENAI_API_KEY"
    options: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    timeout: float = 60.0
    retries: int = 5
    deadline: float = 300.0
    asks: int = 3
    concurrency: int = 8
    give_up: int = 5

    def __post_init__(self):
        texts = {"model": self.model, "cache_dir": str(self.cache_dir), "options": dict(self.options)}
        problems = secret_problems(texts) + self._address_problems() + self._key_problems()
        if not self.model or not isinstance(self.model, str):
            problems.append(f"model={self.model!r}: wanted a model that the endpoint has, for example gpt-4o")
        if not str(self.cache_dir):
            problems.append("cache_dir: wanted a directory for the judge's replies")
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:
                problems.append(f"{name}={getattr(self, name)}: wanted {least} or more")
        ours = sorted({"model", "messages", "stream", "n"} & set(self.options))
        problems += [f"options.{name}: is set by the judge" for name in ours]
        if problems:
            raise ConfigError(problems)

    def rate(self, items: Sequence[Item]) -> Ratings:
        """Rate each item; what is in the cache is not asked, and a question that several items share is asked once.

        Whatever this raises, replies that came are kept: the same call goes on.

        Raises:
            StorageError: the cache cannot be written.
            JudgeError: the endpoint refuses (key, model, address), `give_up` questions in a row got no answer, or
                `give_up` and more were rejected and none was answered.
        """
        from minillm.evaluation.judge.work import rate_all  # imports openai

        options = {name: getattr(self, name) for name in ("base_url", *_AT_LEAST)}
        folder = Path(self.cache_dir).expanduser()
        ratings = Ratings(tuple(rate_all(items, self._question, folder=folder, key=self._key, **options)))
        # Only at the end: texts that are too long may be the first ones that are asked.
        n_rejected = sum(item.rejected for item in ratings.items)
        if n_rejected >= self.give_up and not any(item.replies for item in ratings.items):
            raise JudgeError(
                f"{ratings.first_failure()}; {n_rejected} questions were rejected and none of {len(ratings.items)} was "
                f"answered (give_up={self.give_up}); change what the endpoint names (model, options, base_url) and the "
                "same command asks again"
            )
        return ratings

    def _question(self, item: Item, remind: bool = False) -> dict:
        """The request's body; after a reply without scores it ends with a reminder."""
        first, second = (item.reference, item.answer) if swapped(item) else (item.answer, item.reference)
        text = QUESTION.format(prompt=item.prompt, first=first, second=second) + REMINDER * remind
        return {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def _address_problems(self) -> list[str]:
        if problems := secret_problems({"base_url": str(self.base_url)}):
            return problems
        if re.fullmatch(r"https?://[^\s@?#]+(?<!/chat/completions)", str(self.base_url)):
            return []
        return [  # not shown: it may hold a secret of no known form
            "base_url: wanted an address such as https://api.openai.com/v1, without name, password, ? or # and without "
            "/chat/completions, which is added; the key is in key_variable's variable"
        ]

    def _key_problems(self) -> list[str]:
        name = self.key_variable
        if name is None or (names_secret(str(name)) and re.fullmatch(r"[!-~]+", self._key)):
            return []
        shown = f"={name}" if names_secret(str(name)) else ""  # another text may be a key
        return [
            f"key_variable{shown}: wanted the NAME of an environment variable that ends in API_KEY, TOKEN, SECRET or "
            "PASSWORD and is set to a key of printable ASCII without blanks, or null for no key; never the key itself"
        ]
