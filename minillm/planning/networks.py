"""Networks without data: of a transformers config, under FakeTensorMode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, masking_utils

from minillm.models import Architecture, Checkpoint, FromScratch, Lora, ModelPair, PrunedTeacher
from minillm.models.architecture import decoder_layers, without_dropout
from minillm.models.recompute import recompute_activations


@dataclass(frozen=True)
class Blueprint:
    """What a network is made of. `lora` and `recompute` are the student's."""

    config: PretrainedConfig
    dtype: torch.dtype
    attention: str = "sdpa"
    lora: Lora | None = None
    recompute: bool = False

    def make(self, *, trained: bool) -> PreTrainedModel:
        """The network on fake tensors; call it under FakeTensorMode."""
        config = copy.deepcopy(self.config)
        without_dropout(config)
        # FlashAttention keeps what torch's own kernel keeps.
        attention = "eager" if self.attention == "eager" else "sdpa"
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


def architectures(model: ModelPair) -> tuple[dict[str, Architecture], list[str]]:
    """The shapes of `student` and, where there is one, `teacher`, found without a hub; and a problem for each that is
    not known."""
    found, problems = {}, []
    for side in ("teacher", "student"):
        spec = getattr(model, side)
        if spec is None:
            continue
        if isinstance(spec, PrunedTeacher):
            if teacher := found.get("teacher"):
                found[side] = teacher.shrunk(layers=len(spec.kept(teacher.layers)))
        elif shape := _stated(spec):
            found[side] = shape
        else:
            problems.append(
                f"model.{side}.source={spec.source}: its shape is not known here; add `architecture` to the model's "
                "yaml (see conf/checkpoint/), or give a directory with a config.json"
            )
    return found, problems


def _stated(spec: Checkpoint | FromScratch) -> Architecture | None:
    if spec.architecture is not None or isinstance(spec, FromScratch):
        return spec.architecture
    folder = Path(spec.source).expanduser()
    return Architecture.of(AutoConfig.from_pretrained(folder)) if (folder / "config.json").is_file() else None


@dataclass(frozen=True)
class Sizes:
    """Counts of a whole network: all parameters, those that are trained, `products` (weights that a token is multiplied
    with: linear layers and the head), `head`, `body` (the decoder layers); `cached`: numbers of a token's keys and
    values."""

    parameters: int
    trained: int
    products: int
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
        inside = list(layers.parameters())
        return cls(
            parameters=sum(each.numel() for each in network.parameters()),
            trained=sum(each.numel() for each in parameters(network, trained=True)),
            products=sum(each.numel() for each in inside if each.dim() > 1) + head,
            head=head,
            body=sum(each.numel() for each in inside),
            cached=2 * shape.layers * shape.kv_heads * (shape.head_dim or shape.width // shape.heads),
            layers=shape.layers,
            width=shape.width,
            itemsize=blueprint.dtype.itemsize,
        )


def local_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the parts that this rank holds. The caller passes tied weights once."""
    parts = [getattr(each, "_local_tensor", each) for each in tensors]
    return sum(each.numel() * each.element_size() for each in parts)


class _AsOnCuda(TorchFunctionMode):
    """Under autocast CUDA computes these in float32, and a CPU does not: they double what GPT-2 and OPT keep."""

    _RAISED = (torch.pow, Tensor.pow, functional.layer_norm)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self._RAISED:
            args = tuple(each.float() if isinstance(each, Tensor) else each for each in args)
        return function(*args, **(kwargs or {}))


@contextmanager
def rows_alone() -> Iterator[None]:
    """Make transformers take each row for one sequence. It looks at the values of the positions to find out whether
    several sequences are packed into a row. Fake tensors have no values, and where it cannot look it assumes that they
    are packed and makes a mask that no real run has."""
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda positions: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


@contextmanager
def precision(half: bool, *, cast_once: bool = False) -> Iterator[None]:
    """With `half`, autocast as bf16-mixed has it on CUDA; else nothing. `cast_once`: weights are cast once for the
    whole block, as `sampling.decode` does it."""
    if not half:
        yield
        return
    with _AsOnCuda(), torch.autocast("cpu", torch.bfloat16, cache_enabled=cast_once):
        yield
    torch.clear_autocast_cache()


def parameters(network: nn.Module, *, trained: bool = False) -> list[nn.Parameter]:
    return [each for each in network.parameters() if each.requires_grad or not trained]
