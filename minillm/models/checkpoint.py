"""Where a model comes from: hub id, directory, GGUF file, GGUF file inside an installed package, or random weights."""

from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError

from minillm.common.errors import ConfigError, ModelError, check, first_line
from minillm.common.hub import notice_offline
from minillm.common.lazy import lazy
from minillm.common.machine import has_bfloat16
from minillm.models.architecture import Architecture
from minillm.models.families import unsupported, without_noise
from minillm.models.gguf import converted, file_in_package

if TYPE_CHECKING:
    import torch
    import transformers
    from transformers import (
        BitsAndBytesConfig,
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
else:
    torch = lazy("torch")
    transformers = lazy("transformers")

Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Bits = Literal[4, 8]


def _implementation(attention: Attention) -> str | None:
    """None: sdpa, or eager for the families of transformers that have none."""
    return None if attention == "sdpa" else attention


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

    `architecture`, where given, must be what is found, so that a plan made from it stays true. `offload` is for a
    teacher on a GPU: its body waits on the CPU during updates, its head stays. `adapter` is the directory of a
    PEFT adapter of this source, which is merged in. `bits` of the weights of its body are for a teacher on a GPU too.

    `url` of one or several `minillm.serve` is for a teacher in other processes, in place of `source`; `patience` and
    `timeout`: see `Server`. With `protocol` vllm it is of vLLM servers, and `source` is read for config and tokenizer.
    """

    source: str | None = None
    architecture: Architecture | None = None
    offload: bool = False
    adapter: str | None = None
    bits: Bits | None = None
    url: str | list[str] | None = None
    protocol: Literal["minillm", "vllm"] = "minillm"
    patience: float = 30.0
    timeout: float = 300.0

    def __post_init__(self):
        urls, vllm = [self.url] if isinstance(self.url, str) else self.url or [], self.protocol == "vllm"
        usable = isinstance(self.source, str) and self.source.strip() not in ("", "???")
        usable = usable or (urls and not vllm)
        here = [name for name in ("offload", "adapter", "bits") if getattr(self, name)]
        check(
            (usable, f"source={self.source!r}: wanted a hub id, a directory, a .gguf file or package:NAME"),
            (urls or not vllm, "protocol=vllm without url: wanted http://HOST:PORT of a vLLM server"),
            (not (self.bits and self.offload), f"bits={self.bits} with offload=true: such weights stay on the GPU"),
            (
                self.url is None or (urls and all(re.fullmatch(r"https?://[^/\s]+/?", each) for each in urls)),
                f"url={self.url!r}: wanted http://HOST:PORT of python -m minillm.serve or vLLM, or a list of them",
            ),
            (not (urls and here), f"{', '.join(here)} with url: wanted null, the weights are the server's"),
            (self.patience >= 0 < self.timeout, f"patience={self.patience}, timeout={self.timeout}: wanted seconds"),
        )

    @property
    def name(self) -> str:
        """Name of the weights that `load` gives, for a person."""
        if self.url:
            return f"served at {self.url}"
        return f"{self.source} with {self.adapter}" if self.adapter else self.source

    def resolve(self) -> tuple[str, str | None]:
        """(directory or hub id, hub revision or None). Raises ConfigError where a path is wrong, ModelError for a GGUF
        file."""
        if path := self.place():
            return str(path if path.is_dir() else converted(path)), None
        notice_offline()
        name, _, revision = self.source.partition("@")
        return name, revision or None

    def place(self) -> Path | None:
        """The directory or GGUF file here, None of a hub id. Raises as `resolve`."""
        if self.source.startswith("package:"):
            return file_in_package(self.source.removeprefix("package:"))
        path = Path(self.source).expanduser()
        if path.suffix.lower() == ".gguf" and path.is_file():
            return path
        if path.is_dir():
            if not (path / "config.json").is_file():
                below = path / "student"
                wanted = f"did you mean {below}?" if below.is_dir() else "wanted a Hugging Face directory"
                raise ConfigError(f"source={self.source}: no config.json inside; {wanted}")
            return path
        if path.suffix.lower() == ".gguf" or self.source.startswith((".", "/", "~")) or self.source.count("/") > 1:
            raise ConfigError(f"source={self.source}: no such file or directory")
        return None

    def peek(self) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
        """Config and tokenizer, without the weights. Raises as `load`."""
        path, revision = self.resolve()
        with _advised(self.source):
            config, tokenizer = (
                kind.from_pretrained(path, revision=revision, trust_remote_code=False)
                for kind in (transformers.AutoConfig, transformers.AutoTokenizer)
            )
        if why := unsupported(config):
            raise ModelError(f"{self.source}: {why}")
        return config, tokenizer

    def ends(self) -> tuple[GenerationConfig, int]:
        """The generation config, which states tokens that end an answer, and the rows of the head, without the weights.
        Raises as `load`."""
        if self.url and self.protocol == "minillm":
            raise ModelError(f"url={self.url}: a teacher's server is asked in training only")
        config, _ = self.peek()
        path, revision = self.resolve()
        try:
            stated = transformers.GenerationConfig.from_pretrained(path, revision=revision)
        except OSError:  # it has none, and transformers makes one
            stated = transformers.GenerationConfig.from_model_config(config)
        return stated, config.get_text_config().vocab_size

    def load(
        self, dtype: torch.dtype | None = None, attention: Attention = "sdpa"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, on the CPU (with `bits` on the GPU) and with dropout and other noise off, and its tokenizer; with
        `url` a ServedTeacher and its ServedTokenizer, or a VllmTeacher and the tokenizer of `source`.
        Raises ConfigError or ModelError for what cannot be loaded."""
        if self.url:
            from minillm.models import served, vllm

            urls, limits = [self.url] if isinstance(self.url, str) else self.url, (self.patience, self.timeout)
            if self.protocol == "minillm":
                return served.connect(urls, *limits)
            servers, (config, tokenizer) = [vllm.VllmServer(url, *limits) for url in urls], self.peek()
            network = served.without_weights(config, None, self.ends()[0])
            return vllm.VllmTeacher(servers, network, tokenizer), tokenizer
        dtype = dtype or torch.float32
        if missing := missing_for(self.bits):
            raise ConfigError(missing)
        config, tokenizer = self.peek()
        without_noise(config)
        path, revision = self.resolve()
        with _advised(self.source):
            network, found = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                trust_remote_code=False,  # else transformers asks on the terminal
                config=config,
                dtype=dtype,
                attn_implementation=_implementation(attention),
                quantization_config=quantisation(self.bits, dtype) if self.bits else None,
                output_loading_info=True,
            )
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"{self.source}: {len(missing)} of its weights are not in its files ({missing[0]}), and would be random"
            )
        if self.architecture and (wrong := self.architecture.differences(Architecture.of(network.config))):
            raise ModelError(
                f"{self.source} is not of the stated `architecture`: {'; '.join(wrong)}; correct or remove it"
            )
        if self.adapter is not None:
            from minillm.models.adapter import merge_adapter

            network = merge_adapter(network, self.adapter, self.source, merge=self.bits is None)
        network.name_or_path = "" if self.adapter or self.bits else self.source  # where these very weights are
        return network, tokenizer


def missing_for(bits: Bits | None) -> str | None:
    """What this machine lacks for weights of so many bits, or None."""
    if bits and not torch.cuda.is_available():
        return f"bits={bits}: needs a CUDA GPU and there is none here; remove it, or choose a smaller teacher"
    if bits and importlib.util.find_spec("bitsandbytes") is None:
        return f"bits={bits}: needs bitsandbytes; `pip install -r requirements-quant.txt`"
    return None


def quantisation(bits: Bits, dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with quantised constants (QLoRA, arXiv 2305.14314) or LLM.int8; products in `dtype`. The head stays whole:
    transformers leaves output layers out, and losses need its plain weight."""
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


@dataclass(frozen=True)
class FromScratch:
    """`tokenizer` is a directory or hub id; the weights are a function of `seed`."""

    architecture: Architecture
    tokenizer: str
    seed: int = 0

    def load(
        self, dtype: torch.dtype | None = None, attention: Attention = "sdpa"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """As `Checkpoint.load`."""
        folder = Path(self.tokenizer).expanduser()  # it need not hold a model
        path, revision = (str(folder), None) if folder.is_dir() else Checkpoint(self.tokenizer).resolve()
        with _advised(self.tokenizer):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        if len(tokenizer) > self.architecture.vocabulary:
            raise ConfigError(
                f"architecture.vocabulary={self.architecture.vocabulary}: {self.tokenizer} has {len(tokenizer)} tokens"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.architecture.random_model(_implementation(attention))
        for parameter in network.parameters():  # not network.to(): that would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype or torch.float32)
        return network, tokenizer


_ADVICE = (  # words of a message, what to do
    ("safetensorerror", "a .safetensors file is cut or damaged: copy or download it again"),
    (
        "custom code",
        "it brings code of its own, which is not run here; give a model of an architecture of transformers",
    ),
    ("weights only load|weights_only", "its pickled weights hold more than tensors and are refused; give safetensors"),
    ("pytorchstreamreader|eoferror|keyerror", "its weights are cut or damaged: copy or download them again"),
    ("gated|401|403", "it is gated: accept its licence on its page, then `hf auth login` or set HF_TOKEN"),
    (
        _UNREACHED := "offline|connect|resolve|timed out|couldn't reach|cached files",
        "the hub cannot be reached, and the cache has not got it: download it on another machine (`hf download`) and "
        "give the directory",
    ),
    (
        "not a valid model identifier|404|repository not found",
        "no such model: check the spelling of owner/name@revision, or give a directory",
    ),
    ("backend tokenizer", "it has no tokenizer.json or another tokenizer's files: save its tokenizer there too"),
    ("", "see the cause above"),
)


# RuntimeError and those after it are torch's, of pickled weights that are damaged or of another kind.
_NOT_LOADED = (OSError, ValueError, ImportError, RuntimeError, EOFError, KeyError)


@contextmanager
def _advised(source: str) -> Iterator[None]:
    """What transformers raises becomes a ModelError that says what to do."""
    try:
        yield
    except (*_NOT_LOADED, SafetensorError, pickle.UnpicklingError) as error:
        text = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
        words, todo = next(each for each in _ADVICE if re.search(each[0], text))
        first = f"{first_line(error).removesuffix(' from one of:')}\n  what to do: " * (words != _UNREACHED)
        raise ModelError(f"cannot load {source}: {first}{todo}") from error
