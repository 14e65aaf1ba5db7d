"""A language model as plain sizes: of a transformers config, or of a network that is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.common.errors import first_line
from minillm.common.lazy import lazy
from minillm.models import Architecture, Checkpoint, FromScratch, Lora, ModelPair, PrunedTeacher
from minillm.models.architecture import decoder_layers
from minillm.models.families import text_config, unsupported

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel
else:
    torch, nn, transformers = lazy("torch"), lazy("torch.nn"), lazy("transformers")


@dataclass(frozen=True)
class Sizes:
    """Counts of a whole network: all parameters, those that are trained, `products` (weights that a token is multiplied
    with: linear layers, of experts those it is sent to, and the head), `read` (the same with all experts), `head`,
    `body` (the decoder layers), `matrices` (of the body); `cached`: numbers of a token's keys and values; `repeated`:
    those of one layer once each head has its own, 0 where each has. `itemsize`: bytes of a weight outside of the
    layers; `stored`: of all weights as they are loaded.

    `experts`: of the matrices those that are stacked in one parameter. `kept_whole`, `kept_split`: bytes of a token
    that autograd keeps in one layer, in float32 and under autocast; tensor parallel devices share the latter. `eager`:
    heads whose attention weights are kept too. `layer_norm`: of the last states. `launches`: operations of a decoding
    step."""

    parameters: int
    trained: int
    products: int
    read: int
    head: int
    body: int
    cached: int
    layers: int
    width: int
    itemsize: int
    matrices: int = 0
    experts: int = 0
    stored: int = 0
    repeated: int = 0
    kept_whole: tuple[float, float] = (0, 0)
    kept_split: tuple[float, float] = (0, 0)
    eager: int = 0
    tied: bool = False
    layer_norm: bool = False
    launches: int = 0

    @property
    def ends(self) -> int:
        """Bytes of what is outside of the layers."""
        return (self.parameters - self.body) * self.itemsize

    @property
    def whole(self) -> bool:
        """Whether all weights are trained, and not only adapters."""
        return self.trained > self.parameters / 2

    @property
    def head_gradient(self) -> int:
        """Bytes of the gradient of the head, which has no adapter."""
        return self.head * self.itemsize * self.whole

    @property
    def vocabulary(self) -> int:
        return self.head // self.width

    @property
    def served(self) -> Sizes:
        """Those of a teacher that runs in another process: only its head is here, and multiplies here."""
        there = dict(kept_whole=(0, 0), kept_split=(0, 0), eager=0, products=self.head, read=self.head)
        return replace(self, parameters=self.body + self.head, stored=self.head * self.itemsize, **there)

    def quantised(self, bits: int) -> Sizes:
        """The matrices of the layers in so many bits a weight; what else there is stays, as do stacked experts."""
        return replace(self, stored=round(self.stored - (self.matrices - self.experts) * (self.itemsize - bits / 8)))

    @classmethod
    def planned(
        cls, config: PretrainedConfig, dtype: torch.dtype, attention: str, *, trained: bool, lora: Lora | None = None
    ) -> Sizes:
        """Of the network that would be made of a config; no weights are made."""
        kind = "eager" if attention == "eager" else None  # transformers chooses
        with torch.device("meta"):
            network = transformers.AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation=kind
            )
            network.requires_grad_(trained)
            if trained and lora is not None:
                lora.onto(network, base="")
        return cls.of(network)

    @classmethod
    def of(cls, network: PreTrainedModel) -> Sizes:
        shape, config = Architecture.of(network.config), text_config(network.config)
        head, (_, layers) = network.get_output_embeddings().weight, decoder_layers(network)
        weights = [each for name, each in layers.named_parameters() if ".lora_" not in name and each.dim() > 1]
        matrices, experts = _count(weights), _count(each for each in weights if each.dim() > 2)  # [experts, in, out]
        active = matrices - experts * (1 - getattr(config, "num_experts_per_tok", 1) / (n_experts(config) or 1))
        queries, keys = ((shape.head_dim or shape.width // shape.heads) * n for n in (shape.heads, shape.kv_heads))
        layer_norm = any(isinstance(each, nn.LayerNorm) for each in layers.modules())
        by_head = any(name.endswith(("q_norm", "k_norm")) for name, _ in layers[0].named_modules())
        whole, split = _kept(layers[0], config, shape, queries + keys, active / shape.layers)
        return cls(
            parameters=_count(network.parameters()),
            trained=_count(each for each in network.parameters() if each.requires_grad),
            products=round(active) + head.numel(),
            read=matrices + head.numel(),
            head=head.numel(),
            body=_count(layers.parameters()),
            cached=2 * shape.layers * keys,
            layers=shape.layers,
            width=shape.width,
            itemsize=head.element_size(),
            matrices=matrices,
            experts=experts,
            stored=sum(each.numel() * each.element_size() for each in network.parameters()),
            repeated=2 * queries if queries > keys else 0,
            kept_whole=whole,
            kept_split=split,
            eager=shape.heads if network.config._attn_implementation == "eager" else 0,
            tied=head is network.get_input_embeddings().weight,
            layer_norm=layer_norm,
            launches=shape.layers * (27 if layer_norm else 69 if by_head else 52),
        )


def _kept(layer: nn.Module, config: PretrainedConfig, shape: Architecture, heads: int, weights: float) -> tuple:
    """`kept_whole` and `kept_split` of a layer with `heads` numbers of queries and keys and so many weights for a
    token: of norms, of inputs of products (under autocast each product has its own copy), of attention and of the
    feed-forward part."""
    named = [(name, each) for name, each in layer.named_modules() if "lora_" not in name]
    from transformers.pytorch_utils import Conv1D

    products = sum(isinstance(each, nn.Linear | Conv1D) for _, each in named)
    norms = [each for _, each in named if "Norm" in type(each).__name__]
    tensors = sum(  # what comes in and, of other norms than torch's own, that normalised
        1 if isinstance(each, nn.LayerNorm) else 1 + each.weight.requires_grad
        for each in norms
        if each.weight.numel() == shape.width
    )
    of_heads = any(each.weight.numel() != shape.width for each in norms)
    between = max(0, weights / shape.width - 2 * heads)
    gated = between > 2.5 * shape.ffn or n_experts(config)
    columns = between / (3 if gated else 2)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    # Bytes of a column: gate, its activation, the other factor and their product; or what the activation keeps.
    inner = (16, 8) if gated else {"relu": (4, 2), "gelu_new": (20, 16)}.get(activation, (8, 4))
    adapters = 2 * (columns + heads / 2) if activation == "relu" and len(named) < len([*layer.modules()]) else 0
    whole = tuple(shape.width * (4 * tensors + inputs) for inputs in (8, 2 * max(2, products - 2)))
    full, half = ((size + of_heads * norm) * heads + columns * each
                  for size, norm, each in zip((8, 4), (8, 6), inner, strict=True))  # fmt: skip
    return whole, (full, half + adapters)


def configs(model: ModelPair) -> tuple[dict[str, PretrainedConfig], list[str]]:
    """The configs of `student` and, where they are there, `teacher` and `reference`, found without a hub; and a problem
    for each that is not known or not supported."""
    found, problems = {}, []
    if model.teachers:
        problems.append("model.teachers: a plan knows one teacher; give the largest as model.teacher")
    for side in ("teacher", "student", "reference"):
        spec = model.student if side == "teacher" and model.own_teacher else getattr(model, side)
        if isinstance(spec, PrunedTeacher) and found.get("teacher"):
            n_layers = text_config(found["teacher"]).num_hidden_layers
            from minillm.models.prune import kept_config

            found[side] = kept_config(found["teacher"], spec.kept(n_layers), n_layers)
        elif isinstance(spec, Checkpoint | FromScratch):
            config, why = _stated(spec)
            if why := why or unsupported(config):
                problems.append(f"model.{side}.source={getattr(spec, 'source', 'random weights')}: {why}")
            found[side] = config
    return found, problems


def _stated(spec: Checkpoint | FromScratch) -> tuple[PretrainedConfig | None, str | None]:
    """By `architecture`, which does not say what experts there are, or by the directory; or why not."""
    stated = spec.architecture and spec.architecture.config()
    if isinstance(spec, FromScratch) or (stated and not n_experts(stated)):
        return stated, None
    try:
        return transformers.AutoConfig.from_pretrained(Path(str(spec.source)).expanduser(), local_files_only=True), None
    except (ValueError, OSError) as error:
        if stated:
            what = f"`architecture` does not say what experts {stated.model_type} has"
            return None, f"{what}; wanted a directory with a config.json"
        where = "add `architecture` to the model's yaml (see conf/checkpoint/), or give a directory with a config.json"
        return None, f"its shape is not known here; {where} ({first_line(error)})"


def n_experts(config: PretrainedConfig) -> int | None:
    """Of each layer that has some; None for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return next((value for name in names if (value := getattr(text_config(config), name, None))), None)


def _count(weights: Iterable[Tensor]) -> int:
    return sum(each.numel() for each in weights)
