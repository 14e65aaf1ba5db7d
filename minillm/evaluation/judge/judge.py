"""A language model as judge: rates answer and reference 1 to 10 in one call (the paper's GPT-4 score)."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from minillm.common.errors import ConfigError, DataError, JudgeError, MinillmError
from minillm.common.secret import secret_problems
from minillm.evaluation.judge.endpoint import Endpoint, Unanswered
from minillm.evaluation.judge.replies import ReplyCache, question_key
from minillm.evaluation.judge.verdict import QUESTION, REMINDER, read_scores, score_ratio

_OURS = {"model", "messages", "stream", "n"}


@dataclass(frozen=True)
class Item:
    """What is rated."""

    id: str
    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True)
class Rating:
    """Scores in [1, 10], None unless `outcome` is rated. malformed: the judge replied, without two scores. failed: no
    reply, for the reason in `problem`; `rejected`: the endpoint does not take this question. `replies`: all of them, as
    they came. `asked`: how many of them were paid for in this call."""

    id: str
    outcome: Literal["rated", "malformed", "failed"]
    answer: float | None = None
    reference: float | None = None
    replies: tuple[str, ...] = ()
    asked: int = 0
    problem: str | None = None
    rejected: bool = False


@dataclass(frozen=True)
class Ratings:
    """In the order of the items; none is left out."""

    items: tuple[Rating, ...]

    @property
    def scores(self) -> list[tuple[float, float]]:
        """(answer, reference) of the rated items."""
        return [(item.answer, item.reference) for item in self.items if item.outcome == "rated"]

    @property
    def ratio(self) -> float | None:
        """The GPT-4 score in percent, over the rated items; None where there are none."""
        return score_ratio(self.scores)

    def counts(self) -> dict[str, int]:
        """items = rated + malformed + failed. asked: replies paid for in this call. from_cache: items with a reply that
        took none. malformed_replies: replies without scores, of rated items too."""
        outcomes = Counter(item.outcome for item in self.items)
        return {
            "items": len(self.items),
            **{outcome: outcomes[outcome] for outcome in ("rated", "malformed", "failed")},
            "asked": sum(item.asked for item in self.items),
            "from_cache": sum(item.asked == 0 and item.outcome != "failed" for item in self.items),
            "malformed_replies": sum(len(item.replies) - (item.outcome == "rated") for item in self.items),
        }

    def first_failure(self) -> str | None:
        """The reason of the first item that failed, and how many items failed for the same; None where none did."""
        problems = [item.problem for item in self.items if item.outcome == "failed"]
        if not problems:
            return None
        return f"{problems[0]} ({problems.count(problems[0])} of the {len(problems)} that failed)"


@dataclass(frozen=True)
class Judge:
    """Which judge, and how it is asked. The key is in the environment variable that `key_variable` names (None: no key
    is sent), never in a field.

    options: more of the request's body. asks: how often a question is asked whose reply holds no scores. concurrency:
    questions at a time. give_up: stop after so many questions in a row without an answer, or where so many were
    rejected and not one has an answer. timeout, retries, backoff, longest_wait: see `Endpoint`.

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
    backoff: float = 1.0
    longest_wait: float = 120.0
    asks: int = 3
    concurrency: int = 8
    give_up: int = 5

    def __post_init__(self):
        texts = {"model": self.model, "cache_dir": str(self.cache_dir), "options": dict(self.options)}
        problems = secret_problems(texts)
        try:
            self._endpoint()
        except ConfigError as error:
            problems += error.problems
        if not self.model or not isinstance(self.model, str):
            problems.append(f"model={self.model!r}: wanted a model that the endpoint has, for example gpt-4o")
        if not str(self.cache_dir):
            problems.append("cache_dir: wanted a directory for the judge's replies")
        for name in ("asks", "concurrency", "give_up"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: wanted 1 or more")
        problems += [f"options.{name}: is set by the judge" for name in sorted(_OURS & set(self.options))]
        try:
            json.dumps(dict(self.options))
        except (TypeError, ValueError) as error:
            problems.append(f"options: wanted what JSON can hold ({error})")
        if problems:
            raise ConfigError(problems)

    def rate(self, items: Sequence[Item]) -> Ratings:
        """Rate each item; what is in the cache is not asked, and a question that several items share is asked once.

        Whatever this raises, replies that came are kept: the same call goes on.

        Raises:
            DataError: ids that are not unique. StorageError: the cache cannot be written.
            JudgeError: the endpoint refuses (key, model, address), `give_up` questions in a row got no answer, or
                `give_up` and more were rejected and none was answered.
        """
        if twice := [id for id, n in Counter(item.id for item in items).items() if n > 1]:
            raise DataError(f"items to rate: {len(twice)} ids come more than once ({twice[0]}); wanted each once")
        cache = ReplyCache(Path(self.cache_dir).expanduser())
        cache.require()
        work = _Work(self, self._endpoint(), cache)
        same: dict[str, list[Item]] = {}
        for item in items:
            same.setdefault(question_key(self._question(item, 0)), []).append(item)
        ratings: dict[str, Rating] = {}
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            futures = {pool.submit(work.rate, key, alike[0]): alike[1:] for key, alike in same.items()}
            try:
                for future in as_completed(futures):
                    rating = future.result()
                    ratings[rating.id] = rating
                    ratings |= {other.id: replace(rating, id=other.id, asked=0) for other in futures[future]}
            except BaseException:
                work.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise  # leaving the pool waits for what is on its way: it is paid for
        found = Ratings(tuple(ratings[item.id] for item in items))
        self._require_an_answer(found)
        return found

    def _require_an_answer(self, ratings: Ratings) -> None:
        """Raises JudgeError. Only at the end: texts that are too long may be the first ones that are asked."""
        n_rejected = sum(item.rejected for item in ratings.items)
        if n_rejected >= self.give_up and not any(item.replies for item in ratings.items):
            raise JudgeError(
                f"{ratings.first_failure()}; {n_rejected} questions were rejected and none of {len(ratings.items)} was "
                f"answered (give_up={self.give_up}); change what the endpoint names (model, options, base_url) and the "
                "same command asks again"
            )

    def _endpoint(self) -> Endpoint:
        names = ("base_url", "key_variable", "timeout", "retries", "backoff", "longest_wait")
        return Endpoint(**{name: getattr(self, name) for name in names})

    def _question(self, item: Item, n_replies: int) -> dict:
        """The request's body; after a reply without scores it ends with a reminder."""
        first, second = (item.reference, item.answer) if _swapped(item) else (item.answer, item.reference)
        text = QUESTION.format(prompt=item.prompt, first=first, second=second) + REMINDER * bool(n_replies)
        return {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}


def _swapped(item: Item) -> bool:
    """Judges favour a place: the answer is Assistant 1 for half of the prompts, by a hash, the same for each model."""
    return sha256(json.dumps(item.prompt).encode()).digest()[0] % 2 == 1


class _Work:
    """One call of `Judge.rate`, shared by its threads."""

    def __init__(self, judge: Judge, endpoint: Endpoint, cache: ReplyCache):
        self.judge, self.endpoint, self.cache = judge, endpoint, cache
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._unanswered = 0  # questions in a row

    def rate(self, key: str, item: Item) -> Rating:
        """As `Judge.rate`; what it raises stops the other threads before their next question."""
        try:
            return self._rate(key, item)
        except MinillmError:
            self.stop.set()
            raise

    def _rate(self, key: str, item: Item) -> Rating:
        replies, asked, problem, rejected = self.cache.replies(key), 0, None, False
        scores = next(filter(None, map(read_scores, replies)), None)
        while scores is None and len(replies) < self.judge.asks and problem is None:
            if self.stop.is_set():
                problem = "stopped"
                break
            try:
                reply = self.endpoint.chat(self.judge._question(item, len(replies)), self.stop)
            except Unanswered as error:
                problem, rejected = str(error), error.rejected
                self._count(error)
            else:
                self._unanswered = 0
                asked += 1
                replies.append(reply)
                self.cache.keep(key, self.judge._question(item, 0), replies)
                scores = read_scores(reply)
        outcome = "rated" if scores else "failed" if problem else "malformed"
        first, second = scores or (None, None)
        answer, reference = (second, first) if _swapped(item) else (first, second)
        return Rating(item.id, outcome, answer, reference, tuple(replies), asked, problem, rejected)

    def _count(self, error: Unanswered) -> None:
        """Raises JudgeError: too many in a row. A question that is too long says nothing of the endpoint."""
        if error.rejected or self.stop.is_set():
            return
        with self._lock:
            self._unanswered += 1
            if self._unanswered >= self.judge.give_up:
                raise JudgeError(
                    f"{error}; {self._unanswered} questions in a row got no answer (give_up={self.judge.give_up}). "
                    "Replies that came are kept: the same command goes on; base_url is the address"
                )
