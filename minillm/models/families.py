"""What a transformers config says about decoding and training a family exactly: limits, noise, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NOISE = ("drop", "jitter", "noise")
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "local_attention")
_LAYER_TYPES = {"full_attention", "sliding_attention", "attention", "global", "local"}  # a cache of keys and values


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that describes the language model: of a multimodal one its text config."""
    return config.get_text_config(decoder=True)


def unsupported(config: PretrainedConfig) -> str | None:
    """Why models of this family are refused, with the family's name; None where nothing is known against them."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.auto_factory import _get_model_class

    family, mapping = config.model_type, AutoModelForCausalLM._model_mapping
    if config.is_encoder_decoder:
        return f"{family} is an encoder-decoder; wanted a decoder-only language model"
    if type(config) not in mapping:
        return f"{family} has no causal language model in transformers; wanted a decoder-only language model"
    if family == "phimoe" and text_config(config).router_jitter_noise:  # its eval mode needs it too
        return f"{family} has a router with noise that cannot be turned off; wanted another mixture of experts"
    odd = sorted(set(getattr(text_config(config), "layer_types", None) or ()) - _LAYER_TYPES)
    if odd or _get_model_class(config, mapping)._is_stateful:
        layers = f"layers of type {', '.join(odd)}" if odd else "recurrent layers"
        return f"{family} has {layers}; wanted a family with full or sliding attention in every layer"
    return None


def positions(config: PretrainedConfig) -> int | None:
    """Tokens of a row at most; None for families without a limit (BLOOM)."""
    text = text_config(config)
    names = ("max_position_embeddings", "max_seq_len")
    return next((value for name in names if (value := getattr(text, name, None))), None)


def exact_length(config: PretrainedConfig) -> int | None:
    """Up to how many tokens a row is computed by itself; None: always.

    Beyond the switch of `longrope`, and beyond all positions with `dynamic`, the rotary frequencies of every row follow
    the longest row of the batch, and cached keys keep those of their own time.
    """
    text, limits = text_config(config), []
    given = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for rope in (given, *(each for each in given.values() if isinstance(each, dict))):  # one for each type of layers
        kind = rope.get("rope_type") or rope.get("type") or ""
        if kind == "longrope":
            original = rope.get("original_max_position_embeddings")
            limits.append(original or getattr(text, "original_max_position_embeddings", None) or positions(text))
        elif "dynamic" in kind:
            limits.append(positions(text))
    return min((limit for limit in limits if limit), default=None)


def too_long(config: PretrainedConfig, n_tokens: int) -> str | None:
    """Why rows of so many tokens are refused, or None."""
    limit, exact = positions(config), exact_length(config)
    if limit is not None and n_tokens > limit:
        return f"{config.model_type} has {limit} positions; lower them"
    if exact is not None and n_tokens > exact:
        return (
            f"beyond {exact} tokens the rotary embedding of {config.model_type} follows the longest row of a batch; "
            f"wanted at most {exact}: lower them"
        )
    return None


def windows(config: PretrainedConfig) -> list[int]:
    """Widths of sliding windows, in tokens, in ascending order."""
    text = text_config(config)
    return sorted({value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0})


def probe_length(config: PretrainedConfig) -> int:
    """Tokens of a row that shows whether a model is computed rightly: beyond every window of at most 256 tokens."""
    wanted = max([8, *(window + 3 for window in windows(config) if window <= 256)])
    return min(each for each in (wanted, exact_length(config), positions(config)) if each)


def has_experts(config: PretrainedConfig) -> bool:
    """Whether a router sends each token to some of several parts of a layer."""
    text = text_config(config)
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(text, name, None) or 0) > 1 for name in names)


def without_noise(config: PretrainedConfig) -> None:
    """Set every dropout and jitter to 0, as the published runs do: otherwise a rollout and its update would be of
    different models."""
    from transformers import PretrainedConfig

    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            without_noise(value)
        elif isinstance(value, float) and any(part in name for part in _NOISE):
            setattr(config, name, 0.0)
