"""Checkpoint files: checked before they are trusted, read without running code.

A checkpoint is a zip archive with a CRC-32 of every record, which finds a cut file and a flipped bit.
"""

from __future__ import annotations

import errno
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.common.console import say
from minillm.common.errors import ModelError, StorageError, first_line
from minillm.common.lazy import lazy

if TYPE_CHECKING:
    from torch import Tensor

torch = lazy("torch")

PREFIX = "student."  # the module's only child


def damage(file: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None.

    Raises:
        StorageError: they cannot be read now, which says nothing of them.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if record := archive.testzip():
                return f"damaged: {record}"
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # what lies between the records
    except Exception as error:  # what a reader of damaged bytes may raise is open
        _check_readable(file, error)
        return f"damaged: {first_line(error)}" if file.stat().st_size else "empty"
    return None


def _check_readable(file: Path, error: Exception) -> None:
    """Raise StorageError for an error of the disk or of memory, and not of what the file holds."""
    # EINVAL: a damaged directory names a place outside of the file.
    outside = isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.ENOENT, errno.EISDIR)
    if outside or "unable to mmap" in str(error):  # torch's word for a lack of memory, or a file system without mmap
        raise StorageError(
            f"{file} cannot be read ({getattr(error, 'strerror', None) or error}). This may pass and does not mean "
            "that it is damaged; nothing was changed. Once the disk answers, give the same command again"
        ) from error


def load_saved(file: Path, mapped: bool = True) -> dict:
    """On the CPU. Raises ModelError: not a checkpoint of train.py, or none there; StorageError: not readable now."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        _check_readable(file, error)
        raise ModelError(f"{file}: not a checkpoint ({first_line(error)})") from error
    names = saved.get("state_dict", {}) if isinstance(saved, dict) else {}
    if not names or not all(name.startswith(PREFIX) for name in names):
        raise ModelError(f"{file}: no student inside; wanted a checkpoint of train.py")
    return saved


def differences(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """How the names and shapes differ, with the first weight of each kind of difference; empty where they do not."""
    kinds = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(value.shape)} instead of {list(wanted[name].shape)}"
            for name, value in weights.items()
            if name in wanted and value.shape != wanted[name].shape
        ],
    }
    return ", ".join(f"{len(names)} weights {kind} ({names[0]})" for kind, names in kinds.items() if names)


def checkpoints_in(folder: Path) -> list[Path]:
    """To go on from, the newest first."""
    files = [folder / name for name in ("last.ckpt", "previous.ckpt")]
    return [file for file in files if file.is_file()]


def newest_good(folder: Path) -> Path | None:
    """last.ckpt, or previous.ckpt if that is damaged or gone; None where there is no checkpoint.

    Says what is wrong with a damaged one and puts it out of the way, as NAME.damaged.

    Raises:
        ModelError: there are checkpoints and all are damaged.
        StorageError: one cannot be read now; none is renamed then.
    """
    bad: list[tuple[Path, str]] = []
    for file in checkpoints_in(folder):
        if wrong := damage(file):
            bad.append((file, wrong))
            continue
        for other, reason in bad:
            other.replace(other.with_name(f"{other.name}.damaged"))
            say(f"WARNING: {other} is {reason}; it is {other.name}.damaged now, and the run goes on from {file}")
        if not bad and file.name == "previous.ckpt":
            say(f"WARNING: {folder / 'last.ckpt'} is gone; the run goes on from {file}")
        return file
    if bad:
        listed = "; ".join(f"{file} is {reason}" for file, reason in bad)
        raise ModelError(
            f"no checkpoint to go on from: {listed}. Delete the run's directory or choose another run.name to begin "
            "anew; what checkpoints/best.ckpt holds can be exported: python -m minillm.export"
        )
    return None
