"""Files that are written whole or not at all, and what tells one content from another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(file: Path, text: str | Iterable[str], newline: str | None = None) -> None:
    """Write a text, or its pieces one after the other, atomically: to a file of this process's own, then renamed. A
    full disk leaves the old file."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8", newline=newline) as stream:
            stream.writelines([text] if isinstance(text, str) else text)
        put_in_place(aside, file)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def put_in_place(aside: Path, file: Path) -> None:
    """Rename a finished file once its content is on the disk (fsync), so that a loss of power leaves the old or the new
    one."""
    _sync(aside)
    aside.replace(file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_as(file: Path, other: Path) -> None:
    """Give `file` the second name `other`; without hard links it is renamed to it."""
    aside = other.with_name(f".{other.name}.tmp")
    aside.unlink(missing_ok=True)
    try:
        os.link(file, aside)
        aside.replace(other)
    except OSError:
        file.replace(other)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a directory's files with their names (not its README.md, which names a command)."""
    digest = hashlib.sha256()
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir() and file.name == "README.md":
            continue
        digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()
