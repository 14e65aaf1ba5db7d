"""Files that are written whole or not at all, and what tells one content from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Aside, then renamed; processes that write the same file do not meet."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


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
