"""Settings on disk: config.yaml of a run, written and read as plain data.

Such a file may come from anywhere. Reading it resolves no `${...}`, imports nothing and calls nothing; a `${...}` in it
is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from minillm.common.changes import walk
from minillm.common.errors import ConfigError, first_line
from minillm.common.files import write_whole

_Base = get_yaml_loader()
with suppress(ImportError):  # PyYAML may be built without libyaml, which is six times as fast
    from yaml.cyaml import CParser

    class _Base(CParser, _Base):
        get_single_node = Composer.get_single_node  # not libyaml's own, which follows aliases

        def __init__(self, stream):
            CParser.__init__(self, stream)
            for base in (Composer, SafeConstructor, Resolver):
                base.__init__(self)


class _Loader(_Base):
    """OmegaConf's: numbers as it composes them, no dates. Without aliases a file cannot be larger than it looks."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_config(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        reason, mark = getattr(error, "problem", None) or first_line(error), getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}: cannot be read ({reason}{where}); wanted the config.yaml of a run") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: cannot be read (no settings by name); wanted the config.yaml of a run")
    return found


def other_targets(node: Any, known: Sequence[str], path: str) -> list[str]:
    """Problems: each `_target_` at or below a stored node that is not one of the `known` names. None is imported."""
    found = ((key, value) for key, value in walk(node, path) if key.endswith("._target_") and value is not None)
    return [f"{key}={value!r}: wanted one of {', '.join(known)}" for key, value in found if value not in known]


def write_config(file: Path, plain: Mapping[str, Any]) -> None:
    """Write plain settings, so that `read_config` gives the same."""
    dump = partial(yaml.dump, plain, Dumper=get_omega_conf_dumper(), sort_keys=False)
    text = dump(allow_unicode=True)
    odd = re.search("[\x85\u2028\u2029]", text)  # line ends that PyYAML loses in single quotes
    write_whole(file, dump() if odd else text)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A run's config as plain values, without `pair`: what a recipe took from it stands in the groups."""
    return {key: value for key, value in OmegaConf.to_container(cfg, resolve=True).items() if key != "pair"}


def literal(text: str) -> str:
    """The text with each `${` in it escaped, as OmegaConf wants it; backslashes count only before one."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
