"""The shape of a causal language model as nine plain numbers, so that it can be built without a hub."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from minillm.common.errors import ModelError, check
from minillm.common.lazy import lazy
from minillm.models.families import text_config, without_noise
from minillm.parallel import SPLITTABLE

if TYPE_CHECKING:
    import transformers
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel
else:
    transformers = lazy("transformers")
    nn = lazy("torch.nn")


@dataclass(frozen=True)
class Architecture:
    """`type` is the transformers model type; sizes in units of elements; `head_dim` None means width / heads."""

    type: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tied: bool
    head_dim: int | None = None

    def __post_init__(self):
        sizes = {k: v for k, v in asdict(self).items() if k not in ("type", "tied", "head_dim")}
        odd = self.head_dim is None and self.width % self.heads
        check(
            *((isinstance(v, int) and v > 0, f"{k}={v}: wanted a positive integer") for k, v in sizes.items()),
            (self.heads % self.kv_heads == 0, f"kv_heads={self.kv_heads}: wanted a divisor of heads={self.heads}"),
            (not odd, f"heads={self.heads}: wanted a divisor of width={self.width}, or head_dim"),
        )

    @classmethod
    def of(cls, config: PretrainedConfig) -> Architecture:
        """The architecture that a transformers config describes; of a multimodal one that of its language model."""
        config = text_config(config)
        heads, head_dim = config.num_attention_heads, getattr(config, "head_dim", None)
        ffns = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
        return cls(
            type=config.model_type,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            ffn=next(filter(None, ffns), 4 * config.hidden_size),
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            head_dim=None if not head_dim or head_dim * heads == config.hidden_size else head_dim,
        )

    def differences(self, other: Architecture) -> list[str]:
        """'layers: 12 stated, 24 found' for each number that differs."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]} stated, {theirs[key]} found" for key in mine if mine[key] != theirs[key]]

    def config(self) -> PretrainedConfig:
        """A transformers config of these sizes; everything else is the family's default."""
        sizes = dict(
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            # Families' defaults name special tokens of their own vocabulary.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        if self.type == "gpt2":
            sizes["n_inner"] = self.ffn
        elif self.type == "opt":
            sizes |= dict(ffn_dim=self.ffn, word_embed_proj_dim=self.width)
        else:
            head_dim = self.head_dim or self.width // self.heads
            sizes |= dict(intermediate_size=self.ffn, num_key_value_heads=self.kv_heads, head_dim=head_dim)
        return transformers.AutoConfig.for_model(self.type, **sizes)

    def random_model(self, attention: str | None = None) -> PreTrainedModel:
        """Random weights from torch's global generator, float32, in eval mode and without dropout; `attention` as
        transformers names it."""
        config = self.config()
        without_noise(config)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def body_of(network: PreTrainedModel) -> PreTrainedModel:
    """The part that makes hidden states of token ids: of a multimodal model the language model alone."""
    return network.base_model if text_config(network.config) is network.config else network.get_decoder()


def decoder_layers(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The stack of decoder layers and its name. Raises ModelError if none has as many layers as the config states."""
    n_layers = text_config(network.config).num_hidden_layers
    inside = {id(module) for module in body_of(network).modules()}
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and id(module) in inside:
            return name, module
    raise ModelError(f"{network.config.model_type}: found no stack of {n_layers} layers; this family is not supported")


def split_problems(shape: Architecture, size: int) -> list[str]:
    """Why a model's layers cannot be split over `size` tensor-parallel devices, see `parallel.shard`."""
    if shape.type not in SPLITTABLE:
        families = ", ".join(SPLITTABLE)
        return [f"layers of {shape.type} cannot be split by torch's plans; wanted one of {families}, or fsdp"]
    parts = (("heads", shape.heads), ("key-value heads", shape.kv_heads), ("feed-forward columns", shape.ffn))
    return [f"{size} does not divide its {n} {what}; use a divisor" for what, n in parts if n % size]
