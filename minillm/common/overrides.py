"""Values as Hydra's command line reads them, and the configs that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.singleton import Singleton
from omegaconf import DictConfig

from minillm.common.child import ROOT
from minillm.common.stored import literal


def override(key: str, value: Any) -> str:
    """KEY=VALUE for a plain value, list or mapping; text is quoted, so that it arrives as it is."""
    return f"{key}={_written(value)}"


def compose_in_conf(name: str, overrides: Sequence[str] = (), folder: Path = ROOT / "conf") -> DictConfig:
    """<folder>/<name>.yaml with these overrides, whatever command is at work."""
    state = Singleton.get_state()
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose(name, list(overrides))
    finally:
        Singleton.set_state(state)


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return QuotedString(literal(value), Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_written(key)}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_written, value)) + "]"
    return str(value)
