"""Hashes of a model's weights, type and config, which tell two models apart."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn
from transformers import PreTrainedModel

_ELSEWHERE = ("_name_or_path", "transformers_version", "dtype")  # no properties of the model, or hashed apart


def weights_digest(network: nn.Module, *, without: frozenset[str] = frozenset()) -> str:
    """Hash of all weights and their names, but for those of these names."""
    found = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if name in without:
            continue
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:24]


def model_digest(network: PreTrainedModel) -> str:
    """Hash of weights, type and config: all that hidden states depend on."""
    config = json.loads(network.config.to_json_string(use_diff=False))
    shape = json.dumps({name: value for name, value in config.items() if name not in _ELSEWHERE}, sort_keys=True)
    return hashlib.sha256(f"{shape} {network.dtype} {weights_digest(network)}".encode()).hexdigest()[:24]
