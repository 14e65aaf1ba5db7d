"""Teachers in 4 or 8 bits, by bitsandbytes: an extra (requirements-quant.txt), on CUDA."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from transformers import BitsAndBytesConfig

Bits = Literal[4, 8]


def missing_for(bits: Bits | None) -> str | None:
    """What this machine lacks for weights of so many bits, or None."""
    if bits is None:
        return None
    if not torch.cuda.is_available():
        return f"bits={bits}: needs a CUDA GPU and there is none here; remove it, or choose a smaller teacher"
    if importlib.util.find_spec("bitsandbytes") is None:
        return f"bits={bits}: needs bitsandbytes; `pip install -r requirements-quant.txt`"
    return None


def quantisation(bits: Bits, dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with quantised constants (QLoRA, arXiv 2305.14314) or LLM.int8; products in `dtype`. The head stays whole:
    transformers leaves output layers out, and losses need its plain weight."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
