"""What evaluate.py and minillm.generate have in common: options, the loading of models, and the settings of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf

from minillm.common.checks import matches, value_problems
from minillm.common.errors import ConfigError
from minillm.common.machine import on_cuda
from minillm.common.secret import secret_problems
from minillm.models import Attention, Dtype, choose_dtype, device_of

_POSITIVE = ("temperature", "max_new_tokens", "batch_size", "chunk", "limit", "devices")
_Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Options:
    """Types of the keys that both jobs have; meanings in conf/evaluate.yaml."""

    max_new_tokens: int
    batch_size: int
    chunk: int
    limit: int | None
    dtype: Dtype
    attention: Attention
    device: _Device


def plain_config(cfg: DictConfig | dict) -> dict[str, Any]:
    """Raises ConfigError: a secret is among the settings."""
    plain = cfg if isinstance(cfg, dict) else OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if secrets := secret_problems(plain):
        raise ConfigError(secrets)
    return plain


def option_problems(plain: Mapping[str, Any], kind: type[Options]) -> list[str]:
    """Values that are not of the types of `kind`, and numbers that are not positive."""
    problems = value_problems(plain, get_type_hints(kind), _POSITIVE)
    if plain["device"] == "cuda" and not on_cuda("cuda"):
        problems.append("device=cuda: no GPU is seen here; use device=auto or cpu")
    return problems


def dtype_name(plain: Mapping[str, Any]) -> Any:
    """The dtype that `auto` stands for on the device, by its name; wrong values as they are."""
    if not matches(plain["dtype"], Dtype) or not matches(plain["device"], _Device):
        return plain["dtype"]
    return str(choose_dtype(plain["dtype"], device_of(plain["device"]))).removeprefix("torch.")


def share(items: Iterable, rank: int, n_processes: int) -> list:
    """This process's part, by number: processes that start at different times find different items missing."""
    return list(items)[rank::n_processes]
