"""Settings on disk: config.yaml of a run, written and read as plain data.

Such a file may come from anywhere. Reading it resolves no `${...}`, imports nothing and calls nothing; a `${...}` in it
is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import DictConfig, OmegaConf

from minillm.common.errors import ConfigError, first_line
from minillm.common.files import write_whole

_CORE = ("map", "seq", "str", "int", "float", "bool", "null")
# YAML 1.1 takes 1e-6 for a text, OmegaConf (which composes the settings) for a number.
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF))$"
    r"|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Mappings, lists and plain values; no dates, no merging. Without aliases a file cannot be larger than it looks."""

    yaml_constructors: ClassVar = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _CORE
    }

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as something else."""

    def represent_text(self, text: str) -> yaml.Node:
        rare = any(each in text for each in "\x85\u2028\u2029")  # line ends that PyYAML loses in single quotes
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if rare else None)


_Dumper.add_representer(str, _Dumper.represent_text)

for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0].rpartition(":")[2] in {*_CORE} - {"float"}]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_config(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, OSError, ValueError, LookupError, RecursionError) as error:
        reason, mark = getattr(error, "problem", None) or first_line(error), getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}: cannot be read ({reason}{where}); wanted the config.yaml of a run") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: cannot be read (no settings by name); wanted the config.yaml of a run")
    return found


def other_targets(node: Any, known: Sequence[str], path: str) -> list[str]:
    """Problems: each `_target_` at or below a stored node that is not one of the `known` names. None is imported."""
    if isinstance(node, Mapping):
        target, children = node.get("_target_"), {f"{path}.{key}": each for key, each in node.items()}
    else:
        target, children = None, {f"{path}[{i}]": each for i, each in enumerate(node if isinstance(node, list) else ())}
    problems = (
        [] if target is None or target in known else [f"{path}._target_={target!r}: wanted one of {', '.join(known)}"]
    )
    return problems + [problem for key, each in children.items() for problem in other_targets(each, known, key)]


def write_config(file: Path, plain: Mapping[str, Any]) -> None:
    """Write plain settings, so that `read_config` gives the same."""
    write_whole(file, yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A run's config as plain values, without `pair`: what a recipe took from it stands in the groups."""
    return {key: value for key, value in OmegaConf.to_container(cfg, resolve=True).items() if key != "pair"}


def composed_of(plain: Mapping[str, Any]) -> DictConfig:
    """Plain settings as a config whose texts resolve to themselves."""
    return OmegaConf.create(_escaped(plain))


def literal(text: str) -> str:
    """The text with each `${` in it escaped, as OmegaConf wants it; backslashes count only before one."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return literal(value) if isinstance(value, str) else value
