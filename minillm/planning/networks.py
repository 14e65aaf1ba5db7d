"""Networks without data: of a transformers config, under FakeTensorMode."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations import moe

from minillm.common.errors import first_line
from minillm.models import Architecture, Checkpoint, FromScratch, Lora, ModelPair, PrunedTeacher
from minillm.models.architecture import decoder_layers
from minillm.models.families import attention_for, text_config, unsupported, without_noise
from minillm.models.head import HALF_PRODUCTS
from minillm.models.prune import kept_config
from minillm.models.recompute import recompute_activations


@dataclass(frozen=True)
class Blueprint:
    """What a network is made of. `lora` and `recompute` are the student's."""

    config: PretrainedConfig
    dtype: torch.dtype
    attention: str = "sdpa"
    lora: Lora | None = None
    recompute: bool = False

    @property
    def width(self) -> int:
        """Of hidden states."""
        return text_config(self.config).hidden_size

    def make(self, *, trained: bool) -> PreTrainedModel:
        """The network on fake tensors; call it under FakeTensorMode."""
        config = copy.deepcopy(self.config)
        without_noise(config)
        # FlashAttention keeps what torch's own kernel keeps.
        attention = attention_for(config, "eager" if self.attention == "eager" else "sdpa")
        with unset_fake_temporarily(), torch.device("meta"):  # peft moves its layers, which fake ones do not bear
            network = AutoModelForCausalLM.from_config(config, dtype=self.dtype, attn_implementation=attention)
            if trained and self.lora is not None:
                self.lora.onto(network, base="")
        network._apply(lambda each: torch.empty(each.shape, dtype=each.dtype)).tie_weights()
        if not trained:
            return network.requires_grad_(False).eval()
        if self.recompute:
            recompute_activations(network)
        return network.train()


def configs(model: ModelPair) -> tuple[dict[str, PretrainedConfig], list[str]]:
    """The configs of `student` and, where there is one, `teacher`, found without a hub; and a problem for each that is
    not known or not supported."""
    found, problems = {}, []
    for side in ("teacher", "student"):
        spec = getattr(model, side)
        if spec is None:
            continue
        if isinstance(spec, PrunedTeacher):
            if teacher := found.get("teacher"):
                n_layers = text_config(teacher).num_hidden_layers
                found[side] = kept_config(teacher, spec.kept(n_layers), n_layers)
            continue
        name = f"model.{side}.source={getattr(spec, 'source', 'random weights')}"
        try:
            config = _stated(spec)
        except (ValueError, OSError) as error:
            problems.append(f"{name}: its config cannot be read: {first_line(error)}")
            continue
        if config is None:
            problems.append(
                f"{name}: its shape is not known here; add `architecture` to the model's yaml (see conf/checkpoint/), "
                "or give a directory with a config.json"
            )
        elif isinstance(spec, Checkpoint) and n_experts(config) and not _folder(spec):
            problems.append(
                f"{name}: `architecture` does not say what experts {config.model_type} has; wanted a directory with a "
                "config.json"
            )
        elif why := unsupported(config):
            problems.append(f"{name}: {why}")
        else:
            found[side] = config
    return found, problems


def _stated(spec: Checkpoint | FromScratch) -> PretrainedConfig | None:
    """By `architecture`, which does not say what experts there are, or by the directory."""
    stated = spec.architecture and spec.architecture.config()
    if isinstance(spec, FromScratch) or not (folder := _folder(spec)) or (stated and not n_experts(stated)):
        return stated
    return AutoConfig.from_pretrained(folder)


def _folder(spec: Checkpoint) -> Path | None:
    folder = Path(spec.source).expanduser()
    return folder if (folder / "config.json").is_file() else None


@dataclass(frozen=True)
class Sizes:
    """Counts of a whole network: all parameters, those that are trained, `products` (weights that a token is multiplied
    with: linear layers, of experts those it is sent to, and the head), `read` (the same with all experts), `head`,
    `body` (the decoder layers); `cached`: numbers of a token's keys and values."""

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

    @classmethod
    def of(cls, network: PreTrainedModel, blueprint: Blueprint) -> Sizes:
        shape, head = Architecture.of(network.config), network.get_output_embeddings().weight.numel()
        _, layers = decoder_layers(network)
        inside, config = list(layers.parameters()), text_config(network.config)
        matrices = sum(each.numel() for each in inside if each.dim() == 2)
        experts = sum(each.numel() for each in inside if each.dim() > 2)  # [experts, in, out]
        active = getattr(config, "num_experts_per_tok", 1) / (n_experts(config) or 1)
        return cls(
            parameters=sum(each.numel() for each in network.parameters()),
            trained=sum(each.numel() for each in parameters(network, trained=True)),
            products=matrices + round(experts * active) + head,
            read=matrices + experts + head,
            head=head,
            body=sum(each.numel() for each in inside),
            cached=2 * shape.layers * shape.kv_heads * (shape.head_dim or shape.width // shape.heads),
            layers=shape.layers,
            width=shape.width,
            itemsize=blueprint.dtype.itemsize,
        )


def n_experts(config: PretrainedConfig) -> int | None:
    """Of each layer that has some; None for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return next((value for name in names if (value := getattr(text_config(config), name, None))), None)


def local_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the parts that this rank holds. The caller passes tied weights once."""
    parts = [getattr(each, "_local_tensor", each) for each in tensors]
    return sum(each.numel() * each.element_size() for each in parts)


class _AsOnCuda(TorchFunctionMode):
    """Under autocast CUDA computes some functions in float32, and a CPU does not: they double what GPT-2 and OPT keep.
    And it gives the float32 products of half types that a CPU has not."""

    _RAISED = (torch.pow, Tensor.pow, functional.layer_norm)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self._RAISED:
            args = tuple(each.float() if isinstance(each, Tensor) else each for each in args)
        if function is torch.mm and kwargs:
            left, right = args
            return left.new_empty(len(left), right.shape[1], dtype=kwargs["out_dtype"])
        return function(*args, **(kwargs or {}))


@contextmanager
def fake_experts() -> Iterator[None]:
    """Run grouped experts by transformers' own operation. torch's products of them have no fake version but for
    bfloat16."""
    before = moe._can_use_grouped_mm
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints the traceback of an error that we handle
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        moe._can_use_grouped_mm = lambda *args, **kwargs: False
        yield
    finally:
        log.setLevel(level)
        moe._can_use_grouped_mm = before


@contextmanager
def precision(half: bool, *, cast_once: bool = False) -> Iterator[None]:
    """With `half`, autocast as bf16-mixed has it on CUDA; else nothing. `cast_once`: weights are cast once for the
    whole block, as `sampling.decode` does it."""
    if not half:
        yield
        return
    HALF_PRODUCTS.add("cpu")
    try:
        with _AsOnCuda(), torch.autocast("cpu", torch.bfloat16, cache_enabled=cast_once):
            yield
    finally:
        HALF_PRODUCTS.remove("cpu")
        torch.clear_autocast_cache()


def parameters(network: nn.Module, *, trained: bool = False) -> list[nn.Parameter]:
    return [each for each in network.parameters() if each.requires_grad or not trained]
