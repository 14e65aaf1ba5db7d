"""Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen student, by peft: put on, saved, merged for export."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import cast_adapter_dtype
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minillm.common.console import say
from minillm.common.errors import ConfigError, check, first_line
from minillm.common.folders import whole_directory
from minillm.common.seeding import seed_for
from minillm.models.architecture import body_of

_NAME = "default"  # peft's own for the only adapter


@dataclass(frozen=True)
class Lora:
    """The config group `lora`: W x becomes W x + alpha / rank B A x, with A and B trained and all else frozen.

    `target_modules` are names of linear layers of the body, or ends of their paths; None takes all of them. The head
    stays as it is: losses are computed from its plain weight.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self):
        check(
            (self.rank > 0, f"rank={self.rank}: wanted a positive number of columns"),
            (self.alpha > 0, f"alpha={self.alpha}: wanted a number above 0"),
            (
                self.dropout == 0,
                f"dropout={self.dropout}: wanted 0; otherwise the log-probs of a rollout and those of its update would "
                "be of different models",
            ),
            (self.target_modules != [], "target_modules=[]: wanted names of linear layers, or null for all"),
        )

    def onto(self, network: PreTrainedModel, *, base: str, seed: int = 0) -> None:
        """Change the network in place: its class stays, A is drawn from `seed`, B is 0. `base` is how the saved adapter
        names what it belongs to. Adapters are float32 where the weights are of a half type.

        Raises:
            ConfigError: a target is not a linear layer of the body.
        """
        body = body_of(network)
        inside = {id(module) for module in body.modules()}
        linear = {
            name: module for name, module in network.named_modules() if id(module) in inside and _is_linear(module)
        }
        short = sorted({name.rpartition(".")[2] for name in linear})
        targets = short if self.target_modules is None else list(self.target_modules)
        unknown = [each for each in targets if not any(f".{name}".endswith(f".{each}") for name in linear)]
        if unknown:
            raise ConfigError(
                f"lora.target_modules: {', '.join(unknown)} not among the linear layers of "
                f"{network.config.model_type}; choose from: {', '.join(short)}"
            )
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=_only(network, linear, targets),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
        )
        if renamed := _taken_for_experts(config, network):
            if self.target_modules is not None:
                raise ConfigError(
                    f"lora.target_modules: peft takes {', '.join(renamed)} for the fused experts of "
                    f"{network.config.model_type}; wanted others of: {', '.join(short)}"
                )
            config.target_modules = set(config.target_modules) - set(renamed)
            kinds = sorted({each.rpartition(".")[2] for each in renamed})
            say(f"lora: no adapters on {', '.join(kinds)}: peft takes these names for fused experts")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "lora"))
            inject_adapter_in_model(config, network, _NAME)
        cast_adapter_dtype(network, _NAME)


def _is_linear(module: nn.Module) -> bool:
    """Not a router that is a linear layer by its class and gives several tensors."""
    return isinstance(module, nn.Linear | Conv1D) and type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _taken_for_experts(config: LoraConfig, network: PreTrainedModel) -> list[str]:
    """Targets that peft moves from linear layers to the fused experts of a mixture, for old adapters' sake."""
    moved = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(moved, network, None)
    except ValueError as error:  # some of the names that are fused, and not all
        raise ConfigError(f"lora.target_modules: {first_line(error)}") from error
    return sorted(set(config.target_modules) - set(moved.target_modules))


def _only(network: PreTrainedModel, linear: Collection[str], targets: list[str]) -> list[str]:
    """The targets as they are where these ends of paths name nothing but linear layers of the body; else the paths of
    those. Layers in a list (`0`), fused experts and the vision part of a multimodal model may have the same ends."""
    paths = [*(name for name, _ in network.named_modules()), *(name for name, _ in network.named_parameters())]
    meant = {name for name in paths if any(f".{name}".endswith(f".{each}") for each in targets)}
    return targets if meant <= set(linear) else sorted(meant & set(linear))


def not_adapted(network: PreTrainedModel) -> list[str]:
    """Weights of products in the body of an adapted network that have no adapter because they are no linear layers,
    such as fused experts; with a * for the number of the layer."""
    found = {
        re.sub(r"\b\d+\b", "*", f"{path}.{name}")
        for path, module in body_of(network).named_modules()
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding | LoraLayer)
        for name, each in module.named_parameters(recurse=False)
        if each.dim() > 1 and not name.endswith("bias")
    }
    return sorted(found)


def is_adapted(network: PreTrainedModel) -> bool:
    return any(isinstance(module, LoraLayer) for module in network.modules())


def save_adapter(network: PreTrainedModel, directory: Path, *, state: dict[str, Tensor] | None = None) -> None:
    """As `PeftModel.from_pretrained(base, directory)` and `Checkpoint.adapter` read it, whole or not at all; `state`:
    see merged_weights."""
    config = copy.copy(network.peft_config[_NAME])
    config.inference_mode = True
    # False: else peft asks the hub whether the embeddings are those of the base.
    weights = get_peft_model_state_dict(network, state, adapter_name=_NAME, save_embedding_layers=False)
    weights = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    with whole_directory(directory) as folder:
        config.save_pretrained(folder)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def merged_weights(network: PreTrainedModel, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict of a plain network that computes what the adapted one does: W + s B A (LoRA, arXiv 2106.09685,
    equation 3). `state`: the weights to take, where the network holds parts of them only."""
    state = network.state_dict() if state is None else state
    weights = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (state[f"{name}.{part}.{_NAME}.weight"] for part in ("lora_A", "lora_B"))
            delta = (b @ a) * layer.scaling[_NAME]
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = (weight + (delta.T if layer.fan_in_fan_out else delta)).to(weight.dtype)
    return weights
