"""Config nodes and the constructors they name in `_target_`: compare keys and types, then construct."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from minillm.common.errors import ConfigError, first_line, nearest

# Lightning's options that manual optimisation forbids or that count something else, and ours in their place.
FORBIDDEN_TRAINER = {
    "gradient_clip_val": "optim.grad_clip",
    "gradient_clip_algorithm": "optim.grad_clip (a global norm)",
    "accumulate_grad_batches": "regime.microbatch_tokens (tokens at a time; the mini-batch stays whole)",
    "max_steps": "regime.max_steps",
    "min_steps": "regime.max_steps",
    "max_epochs": "regime.max_steps",
    "min_epochs": "regime.max_steps",
    "max_time": "regime.max_steps",
    "val_check_interval": "callbacks.validation.every",
    "check_val_every_n_epoch": "callbacks.validation.every",
    "limit_val_batches": "data.val_size",
    "logger": "the config group logger",
    "callbacks": "the config group callbacks",
    "strategy": "the config group strategy",
    "plugins": "nothing: the cluster is recognised, checkpoints are ours",
    "devices": "strategy.devices",
    "num_nodes": "strategy.num_nodes",
    "enable_checkpointing": "callbacks.checkpoints",
    "enable_progress_bar": "callbacks.progress",
    "default_root_dir": "run.name",
    "log_every_n_steps": "nothing: every rollout is logged",
    "use_distributed_sampler": "nothing: the data module orders the data",
    "fast_dev_run": "regime.max_steps",
    "limit_train_batches": "regime.max_steps",
    "overfit_batches": "data.train_file",
}


def trainer_problem(key: str) -> str | None:
    """Why a key of the group trainer is refused, or None."""
    if key not in FORBIDDEN_TRAINER:
        return None
    return f"trainer.{key}: the training loop is ours (manual optimisation); use {FORBIDDEN_TRAINER[key]}"


def node_problems(node: Any, path: str, *, supplied: tuple[str, ...] = ()) -> list[str]:
    """Problems of one config node that names its constructor in `_target_`, and of the nodes below it.

    `supplied` are arguments that the build gives itself. `node` is plain (a dict), as OmegaConf.to_container makes it.
    """
    if not isinstance(node, Mapping) or not node.get("_target_"):
        return []
    target, problem = _found(node["_target_"], path)
    if problem:
        return [problem]
    parameters = inspect.signature(target).parameters
    dataclass = inspect.isclass(target) and hasattr(target, "__dataclass_fields__")  # its bases have their own modules
    hints = get_type_hints(target if dataclass or not inspect.isclass(target) else target.__init__)
    problems = []
    given = {key: value for key, value in node.items() if not str(key).startswith("_")}
    for key, value in given.items():
        if path == "trainer" and (refused := trainer_problem(key)):
            problems.append(refused)
        elif key not in parameters or key in supplied:
            names = [name for name in parameters if name not in supplied and name != "self"]
            problems.append(f"{path}.{key}: no such key; {nearest(key, names)}")
        elif isinstance(value, Mapping) and "_target_" in value:
            hint, place = hints.get(key, Any), f"{path}.{key}"
            if (get_origin(hint) or hint) is dict:  # plain values, such as arguments of a template
                problems.append(f"{place}._target_={value['_target_']!r}: no such key; wanted plain values")
                continue
            below, problem = _found(value["_target_"], place)
            if not problem and _misplaced(below, hint):
                problem = f"{place}._target_={value['_target_']}: wanted {describe(hint)}"
            problems += [problem] if problem else node_problems(value, place)
        elif target.__module__.startswith("minillm") and not matches(value, hints.get(key, Any)):
            problems.append(f"{path}.{key}={value!r}: wanted {describe(hints[key])}")
    empty = inspect.Parameter.empty
    for name, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is empty and not variadic and name not in given and name not in supplied:
            problems.append(f"{path}.{name}: missing; wanted {describe(hints.get(name, Any))}")
    return problems


def _found(name: Any, path: str) -> tuple[Any, str | None]:
    """What a `_target_` names, or None and what is wrong with the name."""
    try:
        target = get_object(name)
    except (ImportError, ValueError, AttributeError) as error:
        return None, f"{path}._target_={name!r}: cannot be imported ({first_line(error)}); wanted a class by its path"
    return target, None if callable(target) else f"{path}._target_={name!r}: wanted a class by its path"


def _misplaced(target: Any, hint: Any) -> bool:
    """Is it a class of ours where none of the annotation's classes fits? One's own class may look as it likes."""
    classes = [each for each in get_args(hint) or [hint] if inspect.isclass(each)]
    own = inspect.isclass(target) and target.__module__.startswith("minillm")
    return own and hint is not Any and not issubclass(target, tuple(classes))


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


def value_problems(plain: Mapping, kinds: Mapping[str, Any], positive: Collection[str]) -> list[str]:
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
    if hint is Any:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(matches(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin in (list, tuple):
        inner = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(matches(each, inner) for each in value)
    if origin is dict or hint is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """A type as a person would say it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(each) for each in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"a list of {describe(arguments[0])}" if arguments else "a list"
    names = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        dict: "a mapping",
    }
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))
