"""A judge's replies on disk, so that none is paid for twice: one file a question, named by the question's hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm.common.console import say
from minillm.common.errors import StorageError
from minillm.common.files import write_whole


def question_key(question: Mapping) -> str:
    """SHA-256 of what is sent: model, options, template and texts. Not of the address: a judge may move."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ReplyCache:
    """Files `directory`/ab/abcd... .json with a question and the judge's replies to it, as they came.

    Scores are read from the replies each time, never stored. Several processes may share the directory: a file is
    written whole or not at all, and a kill loses at most the replies that are on their way.
    """

    directory: Path

    def require(self) -> None:
        """Raises StorageError: answers would be paid for and not kept."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(self._problem(error)) from error
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise StorageError(self._problem("no permission"))

    def replies(self, key: str) -> list[str]:
        """In the order in which they came; none where there is no file, or where it is damaged, which is said."""
        try:
            text = self._file(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            return self._damaged(key, error)
        try:
            replies = json.loads(text)["replies"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return self._damaged(key, error)
        if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
            return self._damaged(key, "replies are not texts")
        return replies

    def keep(self, key: str, question: Mapping, replies: Sequence[str]) -> None:
        """Raises StorageError: the disk does not take it."""
        try:
            self._file(key).parent.mkdir(exist_ok=True)
            write_whole(self._file(key), json.dumps({"question": question, "replies": list(replies)}, indent=1) + "\n")
        except OSError as error:
            raise StorageError(self._problem(error)) from error

    def _file(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"

    def _damaged(self, key: str, why: object) -> list[str]:
        say(f"WARNING: {self._file(key)} is damaged ({why}); the question is asked again")
        return []

    def _problem(self, why: object) -> str:
        reason = why.strerror if isinstance(why, OSError) else why
        return (
            f"cache_dir={self.directory}: replies cannot be kept there ({reason}); make room, or set cache_dir to a "
            "directory that can be written. Replies that are there are not asked for again"
        )
