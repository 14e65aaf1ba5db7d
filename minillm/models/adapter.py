"""Low-rank adapters by peft: put on a student, saved, merged; and a trained one merged into its base."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, _find_minimal_target_modules, cast_adapter_dtype
from peft.utils.save_and_load import load_peft_weights
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, first_line
from minillm.common.files import whole_directory
from minillm.common.seeding import seed_for
from minillm.models.architecture import body_of

_NAME = "default"  # peft's own for the only adapter


def inject(network: PreTrainedModel, lora: Any, *, base: str, seed: int) -> None:
    """See `Lora.onto`; `lora` is that object."""
    body = {id(module) for module in body_of(network).modules()}
    linear = [name for name, each in network.named_modules() if id(each) in body and _is_linear(each)]
    short = sorted({name.rpartition(".")[2] for name in linear})
    targets = {end: [name for name in linear if f".{name}".endswith(f".{end}")] for end in lora.target_modules or short}
    if unknown := [end for end, names in targets.items() if not names]:
        raise ConfigError(
            f"model.lora.target_modules: {', '.join(unknown)} not among the linear layers of "
            f"{network.config.model_type}; choose from: {', '.join(short)}"
        )
    chosen = {name for names in targets.values() for name in names}
    others = [name for name, _ in network.named_modules() if name and name not in chosen]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        # A vision part, fused experts or layers in a list (`0`) may have the same ends of paths.
        target_modules=_find_minimal_target_modules(chosen, others),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
    )
    _leave_out_experts(config, network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lora"))
        inject_adapter_in_model(config, network, _NAME)
    cast_adapter_dtype(network, _NAME)


def _is_linear(module: nn.Module) -> bool:
    """Not a router that is a linear layer by its class and gives several tensors."""
    return isinstance(module, nn.Linear | Conv1D) and type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _leave_out_experts(config: LoraConfig, network: PreTrainedModel) -> None:
    """Remove targets that peft, for old adapters' sake, would move to the fused experts of a mixture."""
    moved = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(moved, network, None)
    except ValueError as error:  # some of the names that are fused, and not all
        raise ConfigError(f"model.lora.target_modules: {first_line(error)}") from error
    if taken := config.target_modules - moved.target_modules:
        config.target_modules = moved.target_modules
        kinds = sorted({name.rpartition(".")[2] for name in taken})
        say(f"lora: no adapters on {', '.join(kinds)}: peft takes these names for fused experts")


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


def merge_adapter(network: PreTrainedModel, adapter: str, source: str, *, merge: bool = True) -> PreTrainedModel:
    """`network`, loaded from `source`, with the adapter merged in and all weights trainable; or, with `merge` False,
    with the adapter beside weights that a sum would round, as quantised ones. Raises ConfigError where there is no
    adapter, ModelError where it is of another base, by name or by its weights."""
    directory = Path(adapter).expanduser()
    if not (directory / "adapter_config.json").is_file():
        raise ConfigError(f"adapter={adapter}: no adapter_config.json there; wanted a PEFT directory")
    stated = PeftConfig.from_pretrained(directory).base_model_name_or_path
    if stated and not same_base(stated, source):
        raise ModelError(
            f"adapter {adapter} is of another base: its adapter_config.json names {stated!r}, and it is put on "
            f"{source!r}; change one of them"
        )
    try:
        given = dict(load_peft_weights(str(directory), device="cpu"))
    except Exception as error:  # what a reader of damaged bytes may raise is open
        raise ModelError(
            f"adapter {adapter}: its weights are refused ({first_line(error)}); give safetensors"
        ) from error
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    try:
        with warnings.catch_warnings():  # of names deprecated in transformers, and of what is an error below
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(network, directory)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if differing := sorted(given.keys() ^ expected.keys()):
            raise ValueError(f"{len(differing)} of its weights have no counterpart, the first is {differing[0]}")
    except (RuntimeError, ValueError) as error:  # other sizes; modules that are not there
        first = " ".join(str(error).strip().splitlines()[:2])
        raise ModelError(f"adapter {adapter} (of {stated!r}) does not fit {source!r}: {first}") from error
    ends = (network.get_output_embeddings(), network.get_input_embeddings())
    if merge and tied and any(isinstance(each, BaseTunerLayer) for each in ends):
        raise ModelError(
            f"adapter {adapter}: changes the head or the embeddings of {source!r}, which share their weights; merged, "
            "it would change both. Untie them in the base (tie_word_embeddings=false) and save it before, or train an "
            "adapter of the layers only"
        )
    return adapted.merge_and_unload().requires_grad_(True) if merge else adapted.get_base_model()


def same_base(stated: str, source: str) -> bool:
    """Two names of one base: equal but for a revision, the same directory, or a hub id and a local copy that ends in
    its name."""
    names = [name.split("@")[0].rstrip("/") for name in (stated, source)]
    on_hub = [name.count("/") == 1 and name[0] not in "./~" and not Path(name).exists() for name in names]
    one, other = (Path(name).expanduser().resolve() for name in names)
    return one == other or (on_hub[0] != on_hub[1] and one.name == other.name)
