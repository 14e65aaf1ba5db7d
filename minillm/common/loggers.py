"""Where figures go: always metrics.csv in the run directory, and W&B where it is wanted."""

from __future__ import annotations

import csv
import io
import os
import secrets
from netrc import NetrcParseError, netrc
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from minillm.common.console import say
from minillm.common.errors import ConfigError, StorageError
from minillm.common.files import write_whole
from minillm.common.read import whole_rows

STEP = "progress/optimizer_step"


class MetricsCSV(Logger):
    """One row a logged step. A new column rewrites the file; otherwise rows are appended.

    `resume_at` drops what came after the checkpoint, so that a resumed run's file equals an uninterrupted one's. What
    a full disk does not take stays in memory and is written as soon as it can be.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.file = Path(file)
        self.rows: list[dict[str, str]] = []
        self.columns = [STEP]
        self._behind = False  # the file lacks rows
        if self.file.exists():
            self.rows, left_out = whole_rows(self.file)
            if left_out:
                say(f"WARNING: {self.file}: {left_out} lines cannot be read and are dropped")
            self.columns = list(dict.fromkeys([STEP, *(key for row in self.rows for key in row)]))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args, **kwargs) -> None:
        """The resolved config lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {key: repr(float(value)) for key, value in metrics.items()} | {STEP: str(step)}
        self.rows.append(row)
        new = [key for key in row if key not in self.columns]
        self.columns += sorted(new)
        try:
            if new or self._behind or len(self.rows) == 1:
                self._rewrite()
            else:
                with open(self.file, "a", newline="") as stream:
                    csv.DictWriter(stream, self.columns, restval="").writerow(row)
            self._behind = False
        except OSError as error:
            if not self._behind:
                say(f"WARNING: {self.file} cannot be written ({error.strerror}); its rows wait in memory")
            self._behind = True

    def require(self) -> None:
        """Raises StorageError: rows are still not in the file."""
        if self._behind:
            try:
                self._rewrite()
            except OSError as error:
                raise StorageError(
                    f"{self.file} cannot be written ({error.strerror}). Make room, then the same command with "
                    "resume=auto"
                ) from error
            self._behind = False

    @rank_zero_only
    def resume_at(self, n_rows: int) -> None:
        """Keep the first `n_rows`, those of the checkpoint."""
        if len(self.rows) < n_rows:
            say(f"WARNING: {self.file} has {len(self.rows)} rows, the checkpoint was made after {n_rows}")
        self.rows = self.rows[:n_rows]
        self.columns = list(dict.fromkeys([STEP, *(key for row in self.rows for key in row)]))
        self._rewrite()

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.file, text.getvalue(), newline="")


def wandb_offline() -> bool:
    """WANDB_MODE wins; else online if a key is there (environment or netrc), else offline."""
    if os.environ.get("WANDB_MODE"):
        return False  # wandb itself follows the variable
    return not (os.environ.get("WANDB_API_KEY") or _netrc_has_key())


def _netrc_has_key() -> bool:
    try:
        hosts = netrc(os.environ.get("NETRC")).hosts
    except (OSError, NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def wandb_logger(
    *,
    run_dir: Path,
    name: str,
    settings: dict,
    project: str = "minillm",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    without: str = "logger=csv",
) -> WandbLogger:
    """Files and run id inside the run directory; a resumed run goes on with the same id. `without`: what to type for no
    W&B, which is said.

    Raises:
        ConfigError: W&B gives no run (a key that is wrong, no network).
    """
    import wandb  # takes a second, which runs without need not wait

    id_file = Path(run_dir) / "wandb" / "run_id"
    if not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(secrets.token_hex(4))
    logger = WandbLogger(
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        name=name,
        save_dir=run_dir,
        id=id_file.read_text().strip(),
        resume="allow",
        offline=wandb_offline(),
        config=settings,
    )
    mode = os.environ.get("WANDB_MODE") or ("offline: no key found" if wandb_offline() else "online")
    say(f"W&B run {logger.version} ({mode}); {without} does without")
    try:
        logger.experiment.define_metric(STEP)
        logger.experiment.define_metric("*", step_metric=STEP)
    except wandb.Error as error:
        hint = f"{without} does without, WANDB_MODE=offline keeps it for `wandb sync`"
        raise ConfigError(f"W&B gives no run ({error}); {hint}") from error
    return logger
