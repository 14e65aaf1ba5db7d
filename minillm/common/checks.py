"""Config nodes and the constructors they name in `_target_`: compare keys and types, then construct."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from minillm.common.errors import ConfigError, first_line, nearest

# Lightning's options that manual optimisation forbids or that count something else, by ours in their place.
_OURS = {
    "optim.grad_clip (a global norm)": "gradient_clip_val gradient_clip_algorithm",
    "regime.microbatch_tokens": "accumulate_grad_batches",
    "regime.max_steps": "max_steps min_steps max_epochs min_epochs max_time fast_dev_run limit_train_batches",
    "callbacks.validation.every": "val_check_interval check_val_every_n_epoch",
    "data.train_file and data.val_size": "overfit_batches limit_val_batches",
    "run.name and the config groups logger, callbacks, strategy": "logger callbacks strategy devices num_nodes plugins "
    "default_root_dir enable_progress_bar enable_checkpointing log_every_n_steps use_distributed_sampler",
}
_WORDS = {
    int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null", dict: "a mapping",
}  # fmt: skip
FORBIDDEN_TRAINER = {key: ours for ours, keys in _OURS.items() for key in keys.split()}


def trainer_problem(key: str) -> str | None:
    """Why a key of the group trainer is refused, or None."""
    if key not in FORBIDDEN_TRAINER:
        return None
    return f"trainer.{key}: the training loop is ours (manual optimisation); use {FORBIDDEN_TRAINER[key]}"


def node_problems(node: Any, path: str, *, supplied: tuple[str, ...] = ()) -> list[str]:
    """Problems of one config node that names its constructor in `_target_`, and of the nodes below it.

    `supplied` are arguments that the build gives itself. `node` is plain (a dict), as OmegaConf.to_container makes it.
    """
    if not isinstance(node, Mapping) or node.get("_target_") is None:
        return []
    target, problem = _found(node["_target_"], path)
    if problem:
        return [problem]
    parameters = {
        name: each
        for name, each in inspect.signature(target).parameters.items()
        if name not in supplied and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    dataclass = inspect.isclass(target) and hasattr(target, "__dataclass_fields__")  # its bases have their own modules
    hints = get_type_hints(target if dataclass or not inspect.isclass(target) else target.__init__)
    given = {key: value for key, value in node.items() if not str(key).startswith("_")}
    problems = []
    for key, value in given.items():
        place, hint = f"{path}.{key}", hints.get(key, Any)
        if key not in parameters:
            problems.append(f"{place}: no such key; {nearest(key, parameters)}")
        elif value == "???":
            problems.append(f"{place}: missing; wanted {describe(hint)}")
        elif isinstance(value, Mapping) and "_target_" in value:
            problems += node_problems(value, place) or _misplaced(value, place, hint)
        elif target.__module__.startswith("minillm") and not matches(value, hint):
            problems.append(f"{place}={value!r}: wanted {describe(hint)}")
    return problems + [
        f"{path}.{name}: missing; wanted {describe(hints.get(name, Any))}"
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in given
    ]


def _misplaced(node: Mapping, place: str, hint: Any) -> list[str]:
    """A class of ours in the place of an argument that is annotated with other classes; one's own class may be any."""
    target, classes = get_object(node["_target_"]), tuple(filter(inspect.isclass, get_args(hint) or [hint]))
    ours = inspect.isclass(target) and target.__module__.startswith("minillm")
    wrong = ours and hint is not Any and not issubclass(target, classes)
    return [f"{place}._target_={node['_target_']}: wanted {describe(hint)}"] if wrong else []


def _found(name: Any, path: str) -> tuple[Any, str | None]:
    """What a `_target_` names, or None and what is wrong with the name."""
    try:
        target = get_object(name)
        if callable(target):
            return target, None
        why = "not a class"
    except (ImportError, ValueError, AttributeError) as error:
        why = f"cannot be imported ({first_line(error.__cause__ or error)})"
    return None, f"{path}._target_={name!r}: {why}; wanted a class by its path"


def construct(node: Mapping, **supplied: Any) -> Any:
    """Call the constructor of a checked node, those of the nodes below it first.

    Raises:
        ConfigError: problems of the values, each with its path below this node.
    """
    arguments = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            try:
                value = construct(value)
            except ConfigError as error:
                raise ConfigError(error.prefixed(key)) from error
        if not str(key).startswith("_"):
            arguments[key] = value
    return get_object(node["_target_"])(**arguments, **supplied)


def value_problems(plain: Mapping, kinds: Mapping[str, Any], positive: Collection[str] = ()) -> list[str]:
    """Of keys without a constructor: values that are not of their type, and those not above 0 that must be."""
    problems = []
    for key, kind in kinds.items():
        value = plain[key]
        if not matches(value, kind):
            problems.append(f"{key}={value!r}: wanted {describe(kind)}")
        elif key in positive and value is not None and value <= 0:
            problems.append(f"{key}={value}: wanted a positive number")
    return problems


def collect(problems: list[str], path: str, node: dict, **supplied: Any) -> Any:
    """Construct a node's object; None if something is wrong, which is added to the problems: keys and types first, then
    values."""
    found = node_problems(node, path, supplied=tuple(supplied))
    if not found:
        try:
            return construct(node, **supplied)
        except ConfigError as error:
            found = error.prefixed(path)
    problems += found
    return None


def matches(value: Any, hint: Any) -> bool:
    """Is a plain config value of the annotated type? An int serves as a float; a bool never as a number."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(matches(value, each) for each in arguments)
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if kind in (list, tuple):
        inner = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(matches(each, inner) for each in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, Mapping if kind is dict else kind)


def describe(hint: Any) -> str:
    """A type as a person would say it."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(describe(each) for each in arguments)
    if kind is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if kind in (list, tuple):
        return f"a list of {describe(arguments[0])}" if arguments else "a list"
    return _WORDS.get(kind) or getattr(hint, "__name__", str(hint))
