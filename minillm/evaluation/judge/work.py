"""Asking a judge: questions side by side, and its replies on disk, so that none is paid for twice."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from minillm.common.console import say
from minillm.common.errors import JudgeError, StorageError
from minillm.common.files import write_whole
from minillm.evaluation.judge.endpoint import Endpoint, Unanswered
from minillm.evaluation.judge.verdict import Item, Rating, read_scores, swapped


def rate_all(items: Sequence[Item], question: Callable[..., dict], **options) -> list[Rating]:
    """A rating of each item. `question(item, remind=False)`: the request. `options`: see `Judge`; what is raised here,
    by Ctrl-C too, ends the questions on their way."""
    with start_blocking_portal() as portal:  # an event loop in a thread of its own: a notebook's has one already
        return portal.call(_Work(question, **options).rate, items)


class _Work:
    def __init__(self, question: Callable[..., dict], *, folder: Path, asks, concurrency, give_up, **endpoint):
        self.question, self.folder, self.asks, self.give_up = question, folder, asks, give_up
        self.gate, self.endpoint = asyncio.Semaphore(concurrency), endpoint
        self.unanswered = 0  # questions in a row

    async def rate(self, items: Sequence[Item]) -> list[Rating]:
        with self._storage():  # before anything is paid for
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        # By what is sent: model, options, template and texts. Not by the address: a judge may move.
        keys = [sha256(json.dumps(self.question(item), sort_keys=True).encode()).hexdigest() for item in items]
        try:
            endpoint = Endpoint(**self.endpoint)
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

    async def _rate(self, endpoint: Endpoint, key: str, item: Item) -> Rating:
        file = self.folder / key[:2] / f"{key}.json"
        async with self.gate:
            replies, asked, problem, rejected = _kept(file), 0, None, False
            scores = next(filter(None, map(read_scores, replies)), None)
            while scores is None and len(replies) < self.asks and problem is None:
                try:
                    replies.append(await endpoint.ask(self.question(item, remind=bool(replies))))
                except Unanswered as error:
                    problem, rejected = str(error), error.rejected
                    self._count(error)
                    break
                self.unanswered, asked, scores = 0, asked + 1, read_scores(replies[-1])
                with self._storage():
                    file.parent.mkdir(exist_ok=True)
                    kept = {"question": self.question(item), "replies": replies}
                    write_whole(file, json.dumps(kept, indent=1) + "\n")
        outcome = "rated" if scores else "failed" if problem else "malformed"
        answer, reference = scores or (None, None)
        if swapped(item):
            answer, reference = reference, answer
        return Rating(item.id, outcome, answer, reference, tuple(replies), asked, problem, rejected)

    def _count(self, error: Unanswered) -> None:
        """Raises JudgeError: too many in a row. A question that is too long says nothing of the endpoint."""
        self.unanswered += not error.rejected
        if self.unanswered >= self.give_up:
            raise JudgeError(
                f"{error}; {self.unanswered} questions in a row got no answer (give_up={self.give_up}). Replies "
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
