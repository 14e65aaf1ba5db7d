"""A teacher's hidden states of given answers, stored on disk: KD over several epochs runs the teacher once for each.

Axes: B rows, S positions, N tokens, H width.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from minillm.common.errors import DataError
from minillm.models.digest import model_digest
from minillm.models.language_model import LanguageModel


class CachedTeacher:
    """A teacher whose `states` are read from `folder` if they are stored there. All else is the teacher's own.

    A file holds the states of one row, [n, H]. Its name is a hash of the row's tokens and positions. Each teacher has a
    subfolder, named by a hash of its config, weights and type: states of another teacher are never read. Several
    processes may use the folder. Values are those of the micro-batch in which the row came first; in another
    micro-batch the last digit may differ.
    """

    def __init__(self, teacher: LanguageModel, folder: str | Path):
        self._teacher = teacher
        self._folder = Path(folder).expanduser() / (teacher.digest if teacher.served else model_digest(teacher.network))
        self.made = 0  # rows for which the teacher was run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def states(self, ids_BS: Tensor, state_N: Tensor, token_N: Tensor | None = None) -> Tensor:
        """[N, H], see `LanguageModel.states`. Raises DataError if the cache cannot be written."""
        width, device, ids_BS, state_N = ids_BS.shape[1], ids_BS.device, ids_BS.cpu(), state_N.cpu()
        rows_N, places_N = state_N // width, state_N % width
        rows = rows_N.unique_consecutive().tolist()
        places = [places_N[rows_N == row] for row in rows]
        # Attention looks back only: tokens after the last position do not matter.
        files = [self._file(ids_BS[row, : int(at[-1]) + 1], at) for row, at in zip(rows, places, strict=True)]
        found = [_read(file) for file in files]
        missing = [n for n, each in enumerate(found) if each is None]
        if missing:
            at_M = torch.cat([rows[n] * width + places[n] for n in missing])
            states_MH = self._teacher.states(ids_BS.to(device), at_M.to(device))
            for n, states in zip(missing, states_MH.split([len(places[n]) for n in missing]), strict=True):
                found[n] = states
                self._write(files[n], states)
            self.made += len(missing)
        return torch.cat([each.to(device) for each in found])

    def _file(self, ids_S: Tensor, places: Tensor) -> Path:
        key = hashlib.sha256(repr((ids_S.tolist(), places.tolist())).encode()).hexdigest()
        return self._folder / key[:2] / key[2:34]

    def _write(self, file: Path, states: Tensor) -> None:
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(save({"states": states.detach().cpu().contiguous()}))
            aside.replace(file)
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            raise DataError(
                f"data.teacher_cache: {file.parent} cannot be written ({error.strerror}); the states take "
                f"{states.shape[1] * states.element_size():,} bytes a token. Make room, or set it to null"
            ) from error


def _read(file: Path) -> Tensor | None:
    """None if there is no such file, or if it is damaged."""
    try:
        return load(file.read_bytes())["states"]
    except (OSError, SafetensorError, KeyError):
        return None
