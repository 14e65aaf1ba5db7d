"""Directories that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSIDE = ".new"


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
