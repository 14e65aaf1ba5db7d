"""Checkpoint files: written straight to the disk, checked before they are trusted, read without running code.

A checkpoint is a zip archive with a CRC-32 of every record, which finds a cut file and a flipped bit.
"""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from minillm.common.console import say
from minillm.common.errors import ModelError, StorageError, first_line

PREFIX = "student."  # the module's only child
_BLOCK = 2**22


class CheckpointFile(TorchCheckpointIO):
    """Lightning's own goes by a copy in memory and one in /tmp, and reads with the default of torch.load."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        """Raises OSError: it cannot be written; what was written is removed."""
        try:
            with open(path, "wb") as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            Path(path).unlink(missing_ok=True)
            raise _disk_error(error) from error

    def load_checkpoint(self, path, map_location=lambda storage, location: storage, weights_only=True) -> dict:
        return torch.load(path, map_location=map_location, weights_only=True)


def _disk_error(error: BaseException) -> BaseException:
    """torch's writer, when it closes, hides what the disk said behind a RuntimeError of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return error if cause is None else OSError(cause.errno, os.strerror(cause.errno or 0))


def damage(file: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None.

    Raises:
        StorageError: they cannot be read now, which says nothing of them.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                with archive.open(record) as stream:
                    while stream.read(_BLOCK):
                        pass  # the last read compares the checksum
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # what lies between the records
    except OSError as error:
        if error.errno != errno.EINVAL:  # that one is of a place in the file that a damaged directory names
            raise _unreadable(file, error) from error
        return "damaged: its directory names a place outside of it"
    except Exception as error:  # what a reader of damaged bytes may raise is open
        if "unable to mmap" in str(error):  # torch's word for a lack of memory, or a file system without mmap
            raise _unreadable(file, error) from error
        return f"damaged: {first_line(error)}" if file.stat().st_size else "empty"
    return None


def _unreadable(file: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{file} cannot be read ({getattr(error, 'strerror', None) or error}). This may pass and does not mean that it "
        "is damaged; nothing was changed. Once the disk answers, give the same command again"
    )


def load_saved(file: Path, device: torch.device | str = "cpu") -> dict:
    """Raises ModelError: not a checkpoint of train.py, or none there; StorageError: it cannot be read now."""
    try:
        saved = torch.load(file, map_location=device, weights_only=True, mmap=device == "cpu")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EISDIR):
            raise _unreadable(file, error) from error
        raise ModelError(f"{file}: not a checkpoint ({error.strerror})") from error
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file}: not a checkpoint ({first_line(error)})") from error
    names = saved.get("state_dict", {}) if isinstance(saved, dict) else {}
    if not names or not all(name.startswith(PREFIX) for name in names):
        raise ModelError(f"{file}: no student inside; wanted last.ckpt or best.ckpt of train.py")
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
    files = checkpoints_in(folder)
    bad: list[tuple[Path, str]] = []
    for file in files:
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
