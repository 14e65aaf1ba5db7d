"""What loaded models and data must fulfil for the settings of a run; each problem as what, got, wanted, where."""

from __future__ import annotations

from minillm.common.errors import check
from minillm.data import PromptSet
from minillm.models import Architecture, Pair, split_problems
from minillm.models.families import too_long
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings


def check_lengths(settings: Settings, pair: Pair) -> None:
    """Raise ConfigError where prompt and answer, or a corpus block, are too long for a model, see `too_long`, or its
    layers cannot be split over the tensor-parallel devices."""
    on_policy, validation = isinstance(settings.regime, OnPolicy), settings.callbacks.get("validation")
    prompt, n_prompt = "data.max_prompt_tokens", settings.data.max_prompt_tokens
    longest = {}
    if validation:
        longest[f"{prompt} + callbacks.validation.max_new_tokens"] = n_prompt + validation.max_new_tokens
    if on_policy:
        longest[f"{prompt} + sampler.max_new_tokens"] = n_prompt + settings.sampler.max_new_tokens
    start_given = settings.start.steps and settings.start.responses == "reference"
    if not on_policy or settings.data.on_policy < 1 or start_given:
        longest["data.max_tokens (null: max_prompt_tokens + max_response_tokens)"] = settings.data.longest
    if settings.regulariser.on:
        longest["data.block_size"] = settings.data.block_size
    networks = {"student": pair.student} | {name: each.network for name, each in pair.teachers.items()}
    networks |= {} if pair.reference is None else {"reference": pair.reference.network}
    size, most = settings.strategy.tensor_parallel_size, getattr(pair.teacher, "max_length", float("inf"))
    check(
        *(
            (length <= most, f"{name}={length}: the server takes {most} tokens; raise max_length (vLLM: max-model-len)")
            for name, length in longest.items()
        ),
        *(
            (why is None, f"{name}={length}: {why}")
            for name, length in longest.items()
            for why in dict.fromkeys(too_long(network.config, length) for network in networks.values())
        ),
        *(
            (False, f"strategy.tensor_parallel_size={size}, model.{side}: {problem}")
            for side, network in networks.items()
            if size > 1
            for problem in split_problems(Architecture.of(network.config), size)
        ),
    )


def check_references(settings: Settings, pair: Pair, train: PromptSet, validation: PromptSet) -> None:
    """Raise ConfigError where the supervised start, data.on_policy or the choice of the best lacks references, or the
    student is its own teacher on the same prompts."""
    start, checkpoints = settings.start, settings.callbacks.get("checkpoints")
    references, exact = validation.has_references, pair.teacher and pair.teacher.exact
    measured = {"rouge_l": references or pair.teacher_here is not None, "loss": references}
    separate = pair.teacher_tokenizer is not None
    measured |= {"reverse_kl": exact and not separate, "reverse_kl_sampled": exact is False}
    measured |= {"reverse_kl_per_byte": separate}
    chooses = checkpoints is not None and settings.callbacks["record"].export == "best"
    own = settings.model.own_teacher
    others = settings.regulariser.on or start.steps or getattr(settings.objective, "kd_ratio", 1) < 1
    check(
        (
            not own or others or train.teacher_ids is not None,
            f"model.teacher={own}: the student itself, on the same prompts, so that the gradient is 0. Let the teacher "
            "see more: data.teacher_system, data.teacher_context, data.teacher_template_arguments, or the keys "
            "teacher_system and teacher_context of the records",
        ),
        (
            not start.steps or start.responses == "teacher" or train.has_references,
            "start.responses=reference: not every training prompt has a reference; use start.responses=teacher",
        ),
        (
            settings.data.on_policy == 1 or train.has_references,
            f"data.on_policy={settings.data.on_policy}: not every training prompt has a reference to learn from; "
            "wanted 1, or a data.train_file with answers",
        ),
        (
            not chooses or measured[checkpoints.monitor],
            f"callbacks.checkpoints.monitor={chooses and checkpoints.monitor}: the validation of this run measures "
            f"{', '.join(name for name in measured if measured[name]) or 'none of them'}; loss needs a reference in "
            "every row of data.val_file, reverse_kl a teacher (reverse_kl_sampled: one on a vLLM server; "
            "reverse_kl_per_byte: one with tokens of its own), rouge_l references or a teacher in this process",
        ),
    )
