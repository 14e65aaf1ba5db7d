"""What loaded models and data must fulfil for the settings of a run; each problem as what, got, wanted, where."""

from __future__ import annotations

from minillm.common.errors import check
from minillm.data import PromptSet
from minillm.models import Architecture, Pair, split_problems
from minillm.models.families import too_long
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings


def check_lengths(settings: Settings, pair: Pair) -> None:
    """Raise ConfigError where prompt and answer, or a corpus block, are too long for a model, see `too_long`."""
    on_policy, validation = isinstance(settings.regime, OnPolicy), settings.callbacks.get("validation")
    answers = {
        "callbacks.validation.max_new_tokens": validation.max_new_tokens if validation else 0,
        "sampler.max_new_tokens": settings.sampler.max_new_tokens if on_policy else 0,
    }
    longest = {
        f"data.max_prompt_tokens + {name}": settings.data.max_prompt_tokens + length for name, length in answers.items()
    }
    if not on_policy or (settings.start.steps and settings.start.responses == "reference"):
        longest["data.max_tokens (null: max_prompt_tokens + max_response_tokens)"] = settings.data.longest
    if settings.regulariser.on:
        longest["data.block_size"] = settings.data.block_size
    networks = [pair.student] if pair.teacher is None else [pair.student, pair.teacher.network]
    check(
        *(
            (why is None, f"{name}={length}: {why}")
            for name, length in longest.items()
            for why in dict.fromkeys(too_long(network.config, length) for network in networks)
        )
    )


def check_split(settings: Settings, pair: Pair) -> None:
    """Raise ConfigError where a model's layers cannot be split over the tensor-parallel devices."""
    size = settings.strategy.tensor_parallel_size
    if size == 1:
        return
    sides = {"student": pair.student} | ({} if pair.teacher is None else {"teacher": pair.teacher.network})
    shapes = {side: Architecture.of(network.config) for side, network in sides.items()}
    check(
        *(
            (False, f"strategy.tensor_parallel_size={size}, model.{side}: {problem}")
            for side, shape in shapes.items()
            for problem in split_problems(shape, size)
        )
    )


def check_monitor(settings: Settings, pair: Pair, validation: PromptSet) -> None:
    """Raise ConfigError where the best checkpoint would be chosen by a figure that validation cannot measure."""
    checkpoints = settings.callbacks.get("checkpoints")
    if checkpoints is None or settings.callbacks["record"].export != "best":
        return
    references, teacher = validation.has_references, pair.teacher is not None
    measured = {"rouge_l": references or teacher, "loss": references, "reverse_kl": teacher}
    check(
        (
            measured[checkpoints.monitor],
            f"callbacks.checkpoints.monitor={checkpoints.monitor}: the validation of this run measures "
            f"{', '.join(name for name in measured if measured[name]) or 'none of them'}; loss needs a reference in "
            "every row of data.val_file, reverse_kl a teacher, rouge_l one of the two",
        )
    )
