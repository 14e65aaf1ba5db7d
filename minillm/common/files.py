"""Files and directories that are written whole or not at all, locks, and what tells one content from another."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.common.errors import ConfigError

_INSIDE = ".new"


def write_whole(file: Path, content: str | bytes | Iterable[str], newline: str | None = None) -> None:
    """Write a text, its pieces one after the other, or bytes, to a new file that is then renamed to `file`. A full disk
    leaves the old file; a symbolic link is replaced, and what it points to is not touched."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    how = {"mode": "xb"} if isinstance(content, bytes) else {"mode": "x", "encoding": "utf-8", "newline": newline}
    try:
        aside.unlink(missing_ok=True)
        with open(aside, **how) as stream:  # O_EXCL: follows no link
            stream.writelines([content] if isinstance(content, str | bytes) else content)
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


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A new directory to write into, which takes the place of `directory` at the end; after any failure it is removed,
    and so is what a killed process left of one.

    Beside it, then renamed. Where `directory` is there and empty, inside of it, then moved up: it may be a mount point,
    or in a place where nothing else can be written.
    """
    directory = directory.resolve()  # else a link would be replaced, not what it leads to
    inside = directory.is_dir() and vacant(directory)
    aside = directory / _INSIDE if inside else directory.with_name(f".{directory.name}{_INSIDE}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if inside:
            for each in sorted(aside.iterdir()):
                each.rename(directory / each.name)
            aside.rmdir()
        else:
            if directory.exists():
                shutil.rmtree(directory)
            aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def vacant(directory: Path) -> bool:
    """Is nothing in the way there: nothing at all, or what a killed process left?"""
    return not directory.exists() or (directory.is_dir() and all(each.name == _INSIDE for each in directory.iterdir()))


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a directory's files with their names (not its README.md, which names a command)."""
    digest = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and each.name != "README.md")
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


@contextmanager
def locked(file: Path, busy: Callable[[Path], None], patience: float = 0.0) -> Iterator[int]:
    """Hold the lock on `file`; its descriptor. The kernel frees it when the last process that has the descriptor ends,
    so a child that was given it keeps the lock beyond our own end. (`filelock` unlocks for all of them.)

    busy: called with the file where another process has the lock for `patience` seconds; we wait on unless this raises.

    Raises:
        ConfigError: `file` is a symbolic link. What it points to is not touched.
    """
    end, told = time.monotonic() + patience, False
    while True:
        handle = _opened(file)
        try:
            if _taken(handle, file):
                yield handle
                return
        finally:
            os.close(handle)
        if not told and time.monotonic() >= end:
            told = True
            busy(file)
        time.sleep(0.05)


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(f"{file}: is a symbolic link; wanted a file of its own. Delete the link") from None
        raise


def _taken(handle: int, file: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except (BlockingIOError, FileNotFoundError):  # whoever had it has removed it
        return False
