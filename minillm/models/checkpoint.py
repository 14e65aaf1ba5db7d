"""Where a model comes from: hub id, directory, GGUF file, or GGUF file inside an installed package."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check, first_line
from minillm.common.machine import has_bfloat16
from minillm.models.adapter import merge_adapter
from minillm.models.architecture import Architecture
from minillm.models.families import attention_for, unsupported, without_noise
from minillm.models.gguf import converted, file_in_package
from minillm.models.quantise import Bits, missing_for, quantisation
from minillm.models.vocabulary import Ends

Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """For weights that are not trained: `auto` is bfloat16 on a GPU that has it, else float32 (a CPU without matrix
    units for bfloat16 is about 100 times slower with it)."""
    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def device_of(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


@dataclass(frozen=True)
class Checkpoint:
    """`source` is a hub id (`owner/name` or `owner/name@revision`), a directory, a .gguf file, or `package:NAME`.

    `architecture`, where given, is compared with what is found, so that a plan made from it stays true. `offload` is
    for a teacher on a GPU: its body waits on the CPU during updates, its head stays. `adapter` is the directory of a
    PEFT adapter of this source, which is merged in. `bits` are for a teacher on a GPU too: the weights of its body;
    `load` needs a machine that can, see `missing_for`.
    """

    source: str
    architecture: Architecture | None = None
    offload: bool = False
    adapter: str | None = None
    bits: Bits | None = None

    def __post_init__(self):
        usable = isinstance(self.source, str) and self.source.strip() not in ("", "???")
        check(
            (usable, f"source={self.source!r}: wanted a hub id, a directory, a .gguf file or package:NAME"),
            (
                not (self.bits and self.offload),
                f"bits={self.bits} with offload=true: quantised weights stay on the GPU; change one of them",
            ),
        )

    @property
    def name(self) -> str:
        """Name of the weights that `load` gives, for a person."""
        return f"{self.source} with {self.adapter}" if self.adapter else self.source

    def resolve(self) -> tuple[str, str | None]:
        """(directory or hub id, hub revision or None).

        Raises:
            ConfigError: the source looks like a path and nothing is there.
            ModelError: from the package or the conversion.
        """
        if self.source.startswith("package:"):
            return str(converted(file_in_package(self.source.removeprefix("package:")))), None
        path = Path(self.source).expanduser()
        if path.suffix.lower() == ".gguf" and path.is_file():
            return str(converted(path)), None
        if path.is_dir():
            if not (path / "config.json").is_file():
                student = f"did you mean {path / 'student'}?" if (path / "student" / "config.json").is_file() else None
                raise ConfigError(
                    f"source={self.source}: no config.json inside; {student or 'wanted a Hugging Face directory'}"
                )
            return str(path), None
        if path.suffix.lower() == ".gguf" or self.source.startswith((".", "/", "~")) or self.source.count("/") > 1:
            raise ConfigError(f"source={self.source}: no such file or directory")
        name, _, revision = self.source.partition("@")
        return name, revision or None

    def peek(self) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
        """Config and tokenizer, without the weights. Raises as `load`."""
        path, revision = self.resolve()
        try:
            config, tokenizer = (
                kind.from_pretrained(path, revision=revision, trust_remote_code=False)
                for kind in (AutoConfig, AutoTokenizer)
            )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(_advice(self.source, error)) from error
        if why := unsupported(config):
            raise ModelError(f"{self.source}: {why}")
        return config, tokenizer

    def ends(self) -> Ends:
        """What `load` would tell of tokens, without the weights. Raises as `load`."""
        config, _ = self.peek()
        path, revision = self.resolve()
        try:
            stated = GenerationConfig.from_pretrained(path, revision=revision)
        except OSError:  # it has none, and transformers makes one
            stated = GenerationConfig.from_model_config(config)
        return Ends(stated, config.get_text_config().vocab_size)

    def load(
        self, dtype: torch.dtype = torch.float32, attention: Attention = "sdpa"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, on the CPU (with `bits` on the GPU) and with dropout and other noise off, and its tokenizer.

        Raises:
            ConfigError: this machine has nothing for `bits`, see `missing_for`.
            ModelError: not found, gated, unreachable, not of the stated architecture, or with the adapter of another.
        """
        missing = missing_for(self.bits)
        check((missing is None, missing))
        config, tokenizer = self.peek()
        without_noise(config)
        wanted, attention = attention, attention_for(config, attention)
        if attention != wanted:
            say(
                f"{self.source}: {config.model_type} has no {wanted} attention in transformers; it runs with "
                f"{attention}"
            )
        path, revision = self.resolve()
        try:
            network = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                trust_remote_code=False,  # else transformers asks on the terminal
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                quantization_config=quantisation(self.bits, dtype) if self.bits else None,
            )
        except (OSError, ValueError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
            raise ModelError(_advice(self.source, error)) from error
        if is_pickled(path, revision):
            say(f"{self.source}: no safetensors; its pickled weights are read as plain tensors, no code in them is run")
        if self.architecture and (wrong := self.architecture.differences(Architecture.of(network.config))):
            raise ModelError(
                f"{self.source} is not of the architecture that the config states ({'; '.join(wrong)}); "
                "correct or remove `architecture` beside its source"
            )
        if self.adapter is not None:
            network = merge_adapter(network, self.adapter, self.source, merge=self.bits is None)
        return network, tokenizer


def is_pickled(path: str, revision: str | None) -> bool:
    """Whether a directory's weights, or those of a cached hub model, exist as pickles only."""
    if Path(path).is_dir():
        return not any(Path(path).glob("*.safetensors"))
    names = ("model.safetensors", "model.safetensors.index.json")
    return not any(isinstance(try_to_load_from_cache(path, name, revision=revision), str) for name in names)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, which need not hold a model, or of any `Checkpoint.source`.

    Raises:
        ModelError, ConfigError: there is none.
    """
    folder = Path(source).expanduser()
    path, revision = (str(folder), None) if folder.is_dir() else Checkpoint(source).resolve()
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_advice(source, error)) from error


def _advice(source: str, error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}".lower()
    if isinstance(error, SafetensorError):
        todo = "a .safetensors file is cut or damaged: copy or download it again"
    elif "custom code" in text:
        todo = "it brings code of its own, which is not run here; give a model of an architecture of transformers"
    elif "weights only load failed" in text or "weights_only" in text:
        todo = "its pickled weights hold more than tensors and are refused; give safetensors"
    elif "gated" in text or "401" in text or "403" in text:
        todo = "it is gated: accept its licence on its page, then `hf auth login` or set HF_TOKEN"
    elif any(word in text for word in ("offline", "connect", "resolve", "timed out", "couldn't reach", "cached files")):
        todo = "the hub cannot be reached: download it on another machine (`hf download`) and give the directory"
    elif "not a valid model identifier" in text or "404" in text or "repository not found" in text:
        todo = "no such model: check the spelling of owner/name@revision, or give a directory"
    elif "backend tokenizer" in text:
        todo = "it has no tokenizer.json or another tokenizer's files: save its tokenizer there too"
    else:
        todo = "see the cause above"
    first = first_line(error).removesuffix(" from one of:")
    return f"cannot load {source}: {first}\n  what to do: {todo}"
