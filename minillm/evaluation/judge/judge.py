"""A language model as judge: rates answer and reference 1 to 10 in one call (the paper's GPT-4 score). Questions are
asked side by side, and replies kept on disk, so that none is paid for twice."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from minillm.common.console import say
from minillm.common.errors import ConfigError, JudgeError, StorageError
from minillm.common.files import write_whole
from minillm.common.lazy import lazy
from minillm.common.secret import names_secret, secret_problems
from minillm.evaluation.judge.verdict import QUESTION, REMINDER, Item, Rating, Ratings, read_scores, swapped

asking = lazy("minillm.evaluation.judge.endpoint")  # imports openai

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
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:  # an event loop in a thread of its own: a notebook's has one already
            ratings = Ratings(tuple(portal.call(_Asking(self).rate, items)))
        # Only at the end: texts that are too long may be the first ones that are asked.
        n_rejected = sum(item.rejected for item in ratings.items)
        if n_rejected >= self.give_up and not any(item.replies for item in ratings.items):
            raise JudgeError(
                f"{ratings.first_failure()}; {n_rejected} questions were rejected and none of {len(ratings.items)} was "
                f"answered (give_up={self.give_up}); change what the endpoint names (model, options, base_url) and the "
                "same command asks again"
            )
        return ratings

    def question(self, item: Item, remind: bool = False) -> dict:
        """The request's body; after a reply without scores it ends with a reminder."""
        first, second = (item.reference, item.answer) if swapped(item) else (item.answer, item.reference)
        text = QUESTION.format(prompt=item.prompt, first=first, second=second) + REMINDER * remind
        return {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}

    @property
    def key(self) -> str:
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
        if name is None or (names_secret(str(name)) and re.fullmatch(r"[!-~]+", self.key)):
            return []
        shown = f"={name}" if names_secret(str(name)) else ""  # another text may be a key
        return [
            f"key_variable{shown}: wanted the NAME of an environment variable that ends in API_KEY, TOKEN, SECRET or "
            "PASSWORD and is set to a key of printable ASCII without blanks, or null for no key; never the key itself"
        ]


class _Asking:
    """One call of a judge. What is raised here, by Ctrl-C too, ends the questions on their way."""

    def __init__(self, judge: Judge):
        self.judge, self.folder = judge, Path(judge.cache_dir).expanduser()
        self.gate, self.unanswered = asyncio.Semaphore(judge.concurrency), 0  # questions in a row

    async def rate(self, items: Sequence[Item]) -> list[Rating]:
        judge = self.judge
        with self._storage():  # before anything is paid for
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        # By what is sent: model, options, template and texts. Not by the address: a judge may move.
        keys = [sha256(json.dumps(judge.question(item), sort_keys=True).encode()).hexdigest() for item in items]
        limits = {name: getattr(judge, name) for name in ("timeout", "retries", "deadline")}
        endpoint = asking.Endpoint(judge.base_url, judge.key, **limits)
        try:
            async with endpoint.client, asyncio.TaskGroup() as group:
                of_key = dict(zip(keys, items, strict=True))
                tasks = {key: group.create_task(self._rate(endpoint, key, item)) for key, item in of_key.items()}
        except ExceptionGroup as errors:  # the first has ended the others
            raise errors.exceptions[0] from None
        found, ratings = {key: task.result() for key, task in tasks.items()}, []
        for key, item in zip(keys, items, strict=True):
            ratings.append(replace(found[key], id=item.id))
            found[key] = replace(found[key], asked=0)  # the next item with this question pays nothing
        return ratings

    async def _rate(self, endpoint: asking.Endpoint, key: str, item: Item) -> Rating:
        file = self.folder / key[:2] / f"{key}.json"
        async with self.gate:
            replies, asked, problem, rejected = _kept(file), 0, None, False
            scores = next(filter(None, map(read_scores, replies)), None)
            while scores is None and len(replies) < self.judge.asks:
                try:
                    replies.append(await endpoint.ask(self.judge.question(item, remind=bool(replies))))
                except asking.Unanswered as error:
                    problem, rejected = str(error), error.rejected
                    self._count(error)
                    break
                self.unanswered, asked, scores = 0, asked + 1, read_scores(replies[-1])
                with self._storage():
                    file.parent.mkdir(exist_ok=True)
                    kept = {"question": self.judge.question(item), "replies": replies}
                    write_whole(file, json.dumps(kept, indent=1) + "\n")
        outcome = "rated" if scores else "failed" if problem else "malformed"
        answer, reference = scores or (None, None)
        if swapped(item):
            answer, reference = reference, answer
        return Rating(item.id, outcome, answer, reference, tuple(replies), asked, problem, rejected)

    def _count(self, error: asking.Unanswered) -> None:
        """Raises JudgeError: too many in a row. A question that is too long says nothing of the endpoint."""
        self.unanswered += not error.rejected
        if self.unanswered >= self.judge.give_up:
            raise JudgeError(
                f"{error}; {self.unanswered} questions in a row got no answer (give_up={self.judge.give_up}). Replies "
                "that came are kept: the same command goes on; base_url is the address"
            )

    @contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cache_dir={self.folder}: replies cannot be kept there ({error.strerror}); make room, or set "
                "cache_dir to a directory that can be written. Replies that are there are not asked for again"
            ) from error


def _kept(file: Path) -> list[str]:
    """Replies in the order in which they came; none where there is no file, or where it is damaged, which is said."""
    try:
        replies = json.loads(file.read_text(encoding="utf-8"))["replies"]
        if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
            raise ValueError("replies are not texts")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        say(f"WARNING: {file} is damaged ({error}); the question is asked again")
        return []
    return replies
