"""May a run go on with these settings? What differs is said; what would change its numbers is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minillm.console import say
from minillm.errors import ConfigError, ModelError
from minillm.modules import StudentModule
from minillm.saved import differences, load_saved

# Keys, and groups with all below them, by what another value does to a run that goes on.
NOTHING = (
    "resume", "run", "logger", "profile", "preflight", "optimized_metric", "recipe", "callbacks.progress",
    "callbacks.checkpoints.every", "callbacks.record", "data.workers",
    "trainer.enable_model_summary", "optim.on_nonfinite", "optim.skip_limit",
)  # fmt: skip
ROUNDING = (
    "strategy", "linear_loss", "model.compile", "model.attention", "model.gradient_checkpointing",
    "model.teacher.offload", "regime.microbatch_tokens", "regime.teacher_states", "sampler.batch_size",
    "callbacks.validation.batch_size", "trainer.accelerator",
)  # fmt: skip
FIGURES = ("callbacks.validation.every",)  # when it is validated, and so which weights are the best
_LENGTH = ("regime.max_steps", "regime.epochs")
_ABSENT = "nothing"


def compare_settings(run_dir: Path, plain: dict) -> None:
    """Compare the config.yaml of a run with the settings it is to go on with, and say every difference.

    Raises:
        ConfigError: every difference that would change the numbers; or config.yaml cannot be read.
    """
    file = run_dir / "config.yaml"
    try:
        before = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}), so that the settings "
            "cannot be compared; put it back, or choose another run.name"
        ) from error
    old, new = dict(_flat(before)), dict(_flat(plain))
    refused = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if was == now:
            continue
        effect = _effect(key, was, now, before)
        if effect is None:
            refused.append(f"{key}={now!r}: the run was made with {was!r}")
        elif not _within(key, ("resume", "run")):
            say(f"{key} was {was!r}, is {now!r} now: {effect}")
    if refused:
        advice = f"{run_dir}: going on would change the numbers; set it back, or choose another run.name"
        raise ConfigError([*refused, advice])


def _effect(key: str, was, now, before: dict) -> str | None:
    """What the difference does, or None where it is refused."""
    if _within(key, NOTHING):
        return "the same numbers"
    by_micro_batch = before["objective"].get("denominator") == "micro_batch"
    if key == "regime.microbatch_size" and "rollouts" in before["regime"] and not by_micro_batch:
        return "other rounding"
    if _within(key, ROUNDING) and not (by_micro_batch and key == "regime.microbatch_tokens"):
        return "other rounding"
    if _within(key, FIGURES):
        return "the same training; perhaps another best checkpoint"
    longer = isinstance(was, int | float) and isinstance(now, int | float) and now > was
    if key in _LENGTH and longer and before["optim"]["schedule"] == "constant" and _ends_whole(before["regime"]):
        return "the run is longer"
    return None


def _ends_whole(regime: dict) -> bool:
    """Is the last rollout used up at max_steps? What is cut off there is never made up for."""
    if "rollouts" not in regime:
        return True
    return regime["max_steps"] % (regime["rollouts"] // regime["minibatch_size"] * regime["inner_epochs"]) == 0


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_weights(file: Path, module: StudentModule) -> None:
    """Raises ModelError: the checkpoint is of another model or vocabulary."""
    if differing := differences(load_saved(file)["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: of another model or vocabulary than model.student: {differing}; set model back, or choose "
            "another run.name"
        )
