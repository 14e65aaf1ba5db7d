"""GGUF files, alone or inside an installed package, converted once into the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from minillm.common.console import progress
from minillm.common.errors import ModelError, StorageError, first_line
from minillm.common.lazy import lazy

if TYPE_CHECKING:
    import transformers
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:
    transformers = lazy("transformers")

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where converted models and tokenised corpora lie: `MINILLM_CACHE`, default ~/.cache/minillm."""
    return Path(os.environ.get("MINILLM_CACHE") or Path.home() / ".cache" / "minillm")


def file_in_package(package: str) -> Path:
    """The one GGUF file that an installed package holds; the package itself is not imported."""
    if not package.isidentifier():  # of a dotted name, the first package would be imported
        raise ModelError(f"package:{package}: wanted the name of a package, in letters, digits and _")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations or [] if spec else []
    files = sorted(str(file) for folder in folders for file in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        raise ModelError(
            f"package:{package}: not installed here, or not with one .gguf file inside (got {files}); the demo's is in "
            "requirements-demo.txt"
        )
    return Path(files[0])


def converted(file: Path) -> Path:
    """A Hugging Face directory (safetensors, tokenizer) with the weights of a GGUF file. The cache key is the file's
    SHA-256. A conversion is made aside and renamed, so a kill leaves no half of one. Raises ModelError for a file that
    cannot be converted, StorageError for a cache that cannot be written."""
    try:
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    target = cache_dir() / "gguf" / f"{file.stem}-{digest}"
    if target.is_dir():
        return target
    log.info("Converting %s into %s (once) ...", file.name, target)
    with progress(f"Converting {file.name}"):
        network, tokenizer = _read(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-", ignore_cleanup_errors=True) as aside:
            network.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            os.rename(aside, target)
    except (OSError, SafetensorError) as error:
        if not target.is_dir():  # else another process has finished first
            raise StorageError(f"{target}: cannot be written ({error}); make room, or set MINILLM_CACHE") from error
    return target


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, as if it had never been quantised, and its tokenizer."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        network, found = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, output_loading_info=True
        )
        if wrong := sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"])):
            raise ValueError(f"{len(wrong)} weights are missing, {wrong[0]}")
    except Exception as error:  # what readers raise of cut or unknown bytes is open
        raise ModelError(
            f"{file}: cannot be converted ({type(error).__name__}: {first_line(error)}); wanted a whole file of an "
            "architecture that transformers converts: copy or download it again, or give the model's Hugging Face "
            "directory or hub id as source"
        ) from error
    # Otherwise save_pretrained refuses: it takes the dequantised weights for quantised ones.
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    return network, tokenizer
