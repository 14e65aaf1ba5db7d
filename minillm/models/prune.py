"""A student made of chosen layers of its teacher."""

from __future__ import annotations

import copy
import re

from transformers import AutoModelForCausalLM, PreTrainedModel

from minillm.models.architecture import decoder_layers


def keep_layers(network: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A new model with the `kept` layers (0-based, in order) and copies of all other weights.

    Raises:
        ModelError: no layer stack of the expected length is found.
    """
    config = copy.deepcopy(network.config)
    stack, _ = decoder_layers(network)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    attention = network.config._attn_implementation
    student = AutoModelForCausalLM.from_config(config, dtype=network.dtype, attn_implementation=attention)

    new_index = {old: new for new, old in enumerate(kept)}
    layer = re.compile(rf"^({re.escape(stack)}\.)(\d+)(\..*)$")
    weights = {}
    for name, tensor in network.state_dict().items():
        if match := layer.match(name):
            if int(match[2]) not in new_index:
                continue
            name = f"{match[1]}{new_index[int(match[2])]}{match[3]}"
        weights[name] = tensor
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(network.generation_config)
    return student.to(network.device)
