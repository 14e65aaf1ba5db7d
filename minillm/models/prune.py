"""A student made of chosen layers of its teacher."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from minillm.common.errors import ModelError, first_line
from minillm.models.architecture import decoder_layers
from minillm.models.families import probe_length, text_config

_TOLERANCE = 1e-3  # of the largest logit; in half types 5e-2


def keep_layers(network: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A new model with the `kept` layers (0-based, in order) and copies of all other weights. Raises ModelError where
    it computes something else than the network without the other layers, as where its code or its config depends on
    the numbers of layers."""
    stack, layers = decoder_layers(network)
    attention = network.config._attn_implementation
    weights = {name: each for name, each in network.state_dict().items() if not name.startswith(f"{stack}.")}
    for new, old in enumerate(kept):
        weights |= {f"{stack}.{new}.{name}": each for name, each in layers[old].state_dict().items()}
    try:
        config = kept_config(network.config, kept, len(layers))
        with no_init_weights():  # random weights take longer than all the rest
            student = AutoModelForCausalLM.from_config(config, dtype=network.dtype, attn_implementation=attention)
        student.tie_weights()  # which is left out with the random weights
        student.load_state_dict(weights)
        student.to(network.device).train(network.training)
        error = _difference(network, student, kept)
        if not error <= (_TOLERANCE if network.dtype.itemsize > 2 else 50 * _TOLERANCE):
            raise ValueError(f"its logits would differ from those of the same layers in place by {error:.2g}")
    except Exception as error:  # a config of one length beside layers of another, in whatever way a family notices it
        raise ModelError(
            f"{network.config.model_type}: a student of the layers {kept} cannot be made: {first_line(error)}. Choose "
            "other layers (keep_layers or drop_layers), or give the student a source of its own"
        ) from error
    student.generation_config = copy.deepcopy(network.generation_config)
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
def _difference(network: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> float:
    """How far the student's logits are from the network's when its other layers pass their input on; of the largest."""
    n_vocab = student.get_output_embeddings().weight.shape[0]
    ids_BS = torch.arange(probe_length(network.config), device=network.device).remainder(n_vocab)[None]
    with ExitStack() as hooks:
        for number, layer in enumerate(decoder_layers(network)[1]):
            if number not in kept:
                hooks.enter_context(layer.register_forward_hook(_pass_on, with_kwargs=True))
        right, ours = (each(input_ids=ids_BS, use_cache=False).logits.float() for each in (network, student))
    return ((right - ours).abs().max() / right.abs().max().clamp(min=1e-6)).item()


def _pass_on(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    given: Tensor = args[0] if args else kwargs["hidden_states"]
    return given if isinstance(output, Tensor) else (given, *output[1:])
