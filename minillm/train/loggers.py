"""Figures go to metrics.csv in the run directory, and where it is wanted to TensorBoard or (common/wandb.py) to W&B."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from minillm.common.console import say
from minillm.common.errors import StorageError
from minillm.common.files import write_whole
from minillm.common.read import STEP, whole_rows


class MetricsCSV(Logger):
    """One row a logged step. A new column rewrites the file; otherwise rows are appended.

    Lightning's CSVLogger keeps no rows over a restart. Here `resume_at` drops what came after the checkpoint, so that a
    resumed run's file equals an uninterrupted one's.
    """

    name, version = "csv", ""

    def __init__(self, file: Path):
        super().__init__()
        self.file = Path(file)
        self.rows, left_out = whole_rows(self.file)
        self.columns = _columns(self.rows)
        if left_out:
            say(f"WARNING: {self.file}: {len(left_out)} lines cannot be read and are dropped")

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Not needed: the resolved config lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {key: repr(float(value)) for key, value in metrics.items()} | {STEP: str(step)}
        self.rows.append(row)
        new = sorted(key for key in row if key not in self.columns)
        self.columns += new
        try:
            if new or len(self.rows) == 1:
                self._rewrite()
            else:
                with open(self.file, "a", newline="") as stream:
                    csv.DictWriter(stream, self.columns, restval="").writerow(row)
        except OSError as error:
            raise StorageError(
                f"{self.file} cannot be written ({error.strerror}). Make room, then the same command with resume=auto"
            ) from error

    @rank_zero_only
    def resume_at(self, step: int | None) -> None:
        """Keep the rows up to the optimizer step of a checkpoint; None keeps no row."""
        self.rows = [row for row in self.rows if step is not None and float(row[STEP]) <= step]
        self.columns = _columns(self.rows)
        self._rewrite()

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.file, text.getvalue(), newline="")


def tensorboard_logger(*, run_dir: Path, name: str, settings: dict) -> Any:
    """Writes event files to `run_dir`/tensorboard/, with the settings as text. A run that goes on adds a file."""
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(run_dir, name="tensorboard", version="")
    logger.experiment.add_text("settings", f"```\n{yaml.safe_dump(settings, sort_keys=False)}```")
    say(f"TensorBoard: tensorboard --logdir {run_dir.parent} shows {name}")
    return logger


def log_row(trainer: L.Trainer, row: dict[str, float]) -> None:
    """Give a row, with its STEP, to all loggers. Raises StorageError, on every process: the disk does not take it."""
    failed = None
    try:
        for logger in trainer.loggers:
            logger.log_metrics(row, row[STEP])
    except StorageError as error:  # on rank 0, which alone writes
        failed = str(error)
    if failed := trainer.strategy.broadcast(failed):
        raise StorageError(failed)


def _columns(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys([STEP, *(key for row in rows for key in row)]))
