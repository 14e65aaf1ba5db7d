"""What evaluate.py and minillm.generate have in common: their options and the check of their settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf

from minillm.common.checks import collect, matches, value_problems
from minillm.common.errors import ConfigError
from minillm.common.files import fingerprint
from minillm.common.machine import on_cuda
from minillm.common.read import read_job_settings
from minillm.common.secret import secret_problems
from minillm.data import Sources, training_keys
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


def begin_check(
    cfg: DictConfig | dict, kind: type[Options], files: str, allowed: Collection[str]
) -> tuple[dict[str, Any], Sources | None, dict[str, Any] | None, list[str]]:
    """The plain settings; `data` without the job's own key `files`; the settings.json of an earlier beginning; and the
    problems so far: wrong types, numbers that are not positive, keys of training but those that are `allowed`.

    Raises:
        ConfigError: see `plain_config`.
    """
    plain, problems, before = plain_config(cfg), [], None
    sources = collect(problems, "data", {key: value for key, value in plain["data"].items() if key != files})
    problems += [
        f"data.{key}: is for training; here prompts are in data.{files}"
        for key in training_keys(sources)
        if key not in allowed
    ]
    problems += value_problems(plain, get_type_hints(kind), _POSITIVE)
    if plain["device"] == "cuda" and not on_cuda("cuda"):
        problems.append("device=cuda: no GPU is seen here; use device=auto or cpu")
    try:
        before = read_job_settings(Path(plain["run"]["dir"]))
    except ConfigError as error:
        problems += error.problems
    return plain, sources, before, problems


def dtype_name(plain: Mapping[str, Any]) -> Any:
    """The dtype that `auto` stands for on the device, by its name; wrong values as they are."""
    if not matches(plain["dtype"], Dtype) or not matches(plain["device"], _Device):
        return plain["dtype"]
    return str(choose_dtype(plain["dtype"], device_of(plain["device"]))).removeprefix("torch.")


def content_of(file: str) -> str | None:
    """The hash of a file's or a directory's content; None of what is not on this machine."""
    path = Path(file).expanduser()
    return fingerprint(path) if path.exists() else None
