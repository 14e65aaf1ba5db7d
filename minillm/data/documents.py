"""The text of a corpus as a stream: text files, JSONL, Parquet, directories, a hub data set, Python's reference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

from minillm.common.errors import DataError
from minillm.common.hub import hub_id
from minillm.data.records import ROWS, file_rows, hub_rows, text_of

PIECE = 2**16  # characters that are tokenised at a time (longer ones cost more each); see `_cut` for longer documents
_CHECKED = 2**22  # characters that are read ahead for mistakes
_TEXT = ".txt"


@dataclass(frozen=True)
class Documents:
    """A corpus that is read from its beginning each time it is asked, one piece in memory at a time."""

    source: str  # as in `read_documents`, for messages
    read: Callable[[], Iterator[Iterable[str]]]  # each document as an iterator over parts of its text
    digest: Callable[[], str]  # what stands for the content in the name of a cache
    size: int | None = None  # about its bytes

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """(text, whether a document ends with it), of at most PIECE characters; documents of white space are left out.
        Raises DataError, naming file, line and key."""
        for parts in self.read():
            yield from _pieces(parts)


def read_documents(source: str) -> Documents:
    """`pydoc_topics` (Python's own language reference, in every CPython), a .jsonl or .parquet file with the key text,
    a text file (one document), a directory with such files at any depth, or a hub data set `owner/name[:split]`.

    The first 4 million characters are read at once, so that mistakes show before models are loaded. Raises DataError,
    naming file, line and key.
    """
    if source == "pydoc_topics":
        documents = Documents(source, _topics, lambda: _sha256(chain.from_iterable(_topics())))
    elif hub_id(source, "dataset"):
        rows = hub_rows(source)
        digest, size = f"{source} {rows._fingerprint}", getattr(getattr(rows, "data", None), "nbytes", None)
        documents = Documents(source, lambda: _hub_texts(source, rows), lambda: digest, size)
    else:
        files = _files(Path(source).expanduser())
        size = sum(file.stat().st_size for file in files if file.exists())
        documents = Documents(source, lambda: chain.from_iterable(map(_file, files)), lambda: _content(files), size)
    sizes = accumulate(len(text) for text, _ in documents.pieces())
    next((size for size in sizes if size > _CHECKED), None)
    return documents


def _pieces(parts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    held, begun = "", False
    for part in parts:
        for start in range(0, len(part), PIECE):
            held += part[start : start + PIECE]
            while len(held) > PIECE:
                end = _cut(held)
                if begun or held[:end].strip():
                    begun = True
                    yield held[:end], False
                held = held[end:]
    if begun or held.strip():
        yield held, True


def _cut(text: str) -> int:
    """Where to cut off the first piece: in its second half, before white space that follows a letter or a digit, at a
    blank line if there is one.

    Tokenizers that split text into words first (GPT-2's, Llama 3's, Qwen's: all but \\s and punctuation ends at such a
    place) give the tokens of the whole document. Those that do not (SentencePiece) begin anew once a piece.
    """
    for gap in ("\n\n", "\n", " "):
        if found := re.compile(rf"(?s).*[^\W_](?={gap})").match(text, PIECE // 2 - 1, PIECE + len(gap)):
            return found.end()
    return PIECE


def _topics() -> Iterator[list[str]]:
    from pydoc_data.topics import topics

    return ([topics[name]] for name in sorted(topics))


def _files(path: Path) -> list[Path]:
    """The file itself, or all files of a directory in the order of their paths."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in (*ROWS, _TEXT) and file.is_file())
    if not files:
        raise DataError(f"{path}: no .txt, .jsonl or .parquet file inside; change data.corpus_file")
    return files


def _file(path: Path) -> Iterator[Iterable[str]]:
    if path.suffix in ROWS:
        return ([_text(where, row)] for where, row in file_rows(path))
    return iter([_read_text(path)])


def _read_text(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            while part := stream.read(PIECE):
                yield part
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); change data.corpus_file") from error


def _text(where: str, row: object) -> str:
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict) or "text" not in row:
        got = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: wanted one JSON object a line with the key text, got {got}")
    return text_of(where, "text", row["text"])


def _hub_texts(source: str, rows: Iterable[dict]) -> Iterator[list[str]]:
    return ([_text(f"{source}:{number}", row)] for number, row in enumerate(rows, start=1))


def _content(files: list[Path]) -> str:
    """Hash of the files' bytes, order and kind; names and dates do not matter."""
    digests = []
    for file in files:
        with open(file, "rb") as stream:
            digests.append(f"{file.suffix in ROWS} {hashlib.file_digest(stream, 'sha256').hexdigest()}")
    return _sha256(digests)


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
