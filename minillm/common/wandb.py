"""A run of Weights & Biases whose files lie in the run directory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from minillm.common.console import say
from minillm.common.errors import ConfigError
from minillm.common.read import STEP


def wandb_offline() -> bool:
    """WANDB_MODE wins; else online if a key is there (environment or netrc), else offline."""
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_MODE"):
        return False  # wandb itself follows the variable
    host = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    return not (os.environ.get("WANDB_API_KEY") or get_netrc_auth(host))


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
) -> Any:
    """A WandbLogger; a resumed run goes on with the same id. `without`: what to type for no W&B, for messages.

    Raises:
        ConfigError: W&B gives no run (a wrong key, no network).
    """
    import wandb  # takes a second, for which other runs need not wait
    from lightning.pytorch.loggers import WandbLogger

    id_file = Path(run_dir) / "wandb" / "run_id"
    if not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(secrets.token_hex(4))
    where = dict(project=project, entity=entity, group=group, tags=tags, name=name, save_dir=run_dir)
    offline, run_id = wandb_offline(), id_file.read_text().strip()
    logger = WandbLogger(**where, id=run_id, resume="allow", offline=offline, config=settings)
    vars(logger).get("_wandb_init", {}).pop("anonymous", None)  # given by Lightning; W&B warns of it
    mode = os.environ.get("WANDB_MODE") or ("offline: no key found" if offline else "online")
    say(f"W&B run {logger.version} ({mode}); {without} does without")
    try:
        logger.experiment.define_metric(STEP)
        logger.experiment.define_metric("*", step_metric=STEP)
    except wandb.Error as error:
        hint = f"{without} does without, WANDB_MODE=offline keeps it for `wandb sync`"
        raise ConfigError(f"W&B gives no run ({error}); {hint}") from error
    return logger
