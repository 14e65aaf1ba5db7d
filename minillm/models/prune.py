"""A student made of chosen layers of its teacher."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minillm.common.errors import ModelError, first_line
from minillm.models.architecture import decoder_layers
from minillm.models.families import text_config

_TOLERANCE = 1e-3  # of the largest logit; in half types 5e-2


def keep_layers(network: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A new model with the `kept` layers (0-based, in order) and copies of all other weights.

    Raises:
        ModelError: there is no stack of layers of the expected length, or the new model computes something else than
            the network without the other layers: its code or its config depends on the numbers of layers.
    """
    stack, layers = decoder_layers(network)
    attention = network.config._attn_implementation
    new_index = {old: new for new, old in enumerate(kept)}
    layer = re.compile(rf"^({re.escape(stack)}\.)(\d+)(\..*)$")
    weights = {}
    for name, tensor in network.state_dict().items():
        if match := layer.match(name):
            if int(match[2]) not in new_index:
                continue
            name = f"{match[1]}{new_index[int(match[2])]}{match[3]}"
        weights[name] = tensor
    try:
        config = kept_config(network.config, kept, len(layers))
        student = AutoModelForCausalLM.from_config(config, dtype=network.dtype, attn_implementation=attention)
        student.load_state_dict(weights)
    except Exception as error:  # a config of one length beside layers of another, in whatever way a family notices it
        raise _refusal(network, kept, f"its config or its weights do not allow it ({first_line(error)})") from error
    student.generation_config = copy.deepcopy(network.generation_config)
    student.to(network.device).train(network.training)
    _compare(network, student, kept)
    return student


def kept_config(config: PretrainedConfig, kept: list[int], n_layers: int) -> PretrainedConfig:
    """With the entries of the kept layers in each list that has one a layer, and their new numbers in each list of
    layers; as it is once it has been saved and read."""
    config = copy.deepcopy(config)
    text = text_config(config)
    for name, value in list(vars(text).items()):
        if not isinstance(value, list | tuple) or not value or "token" in name:  # a list of stop tokens
            continue
        if len(value) == n_layers:
            setattr(text, name, type(value)(value[layer] for layer in kept))
        elif name.endswith("_layers") and all(type(each) is int and each < n_layers for each in value):
            setattr(text, name, type(value)(kept.index(layer) for layer in value if layer in kept))
    text.num_hidden_layers = len(kept)
    return type(config).from_dict(config.to_dict())


@torch.no_grad()
def _compare(network: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    """Raise ModelError unless the student computes what the network does when its other layers pass their input on."""
    layers, own = (decoder_layers(each)[1] for each in (network, student))
    for new, old in enumerate(kept):
        if differing := _attributes(layers[old]).items() ^ _attributes(own[new]).items():
            name, _ = min(differing)
            raise _refusal(network, kept, f"its layer {old} would have another {name}")
    ids_BS = torch.arange(8, device=network.device).remainder(student.get_output_embeddings().weight.shape[0])[None]
    hooks = [
        layer.register_forward_hook(_pass_on, with_kwargs=True)
        for number, layer in enumerate(layers)
        if number not in kept
    ]
    try:
        right, ours = (each(input_ids=ids_BS, use_cache=False).logits.float() for each in (network, student))
    finally:
        for hook in hooks:
            hook.remove()
    error = ((right - ours).abs().max() / right.abs().max().clamp(min=1e-6)).item()
    if not error <= (_TOLERANCE if network.dtype.itemsize > 2 else 50 * _TOLERANCE):
        raise _refusal(network, kept, f"its logits would differ from those of the same layers in place by {error:.2g}")


def _pass_on(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    given: Tensor = args[0] if args else kwargs["hidden_states"]
    return given if isinstance(output, Tensor) else (given, *output[1:])


def _attributes(layer: nn.Module) -> dict[tuple[str, str], Any]:
    """Plain values of a layer's modules that may change what they compute: windows, kinds of attention, flags. Not
    their numbers, which are what they should be in their own model."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not re.search(r"training|checkpoint|idx|index|_id$", name)
    }


def _refusal(network: PreTrainedModel, kept: list[int], why: str) -> ModelError:
    return ModelError(
        f"{network.config.model_type}: a student of the layers {kept} cannot be made: {why}. Choose other layers "
        "(keep_layers or drop_layers), or give the student a source of its own"
    )
