"""Tiny models and a tokenizer made on the spot: no network, no downloads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.models import Architecture, LanguageModel, Pair

WORDS = [
    *"the a of to and in is what name list write tell why".split(),
    *"how big small red blue cat dog fish bird tree river one two".split(),
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3")


def make_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Word level; pad = eos = </s>, the trap of GPT-2, OPT and LLaMA."""
    words = ["</s>", "<unk>", "user", "assistant", "system", *WORDS, *extra]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    return fast


def make_model(
    family: str = "llama",
    *,
    vocabulary: int = 31,
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    tied: bool = False,
    dtype=torch.float64,
):
    """Random weights, large enough that distributions are far from uniform."""
    torch.manual_seed(seed)
    kv_heads = 4 if family in ("gpt2", "opt") else 2
    sizes = dict(layers=layers, width=width, heads=4, kv_heads=kv_heads, ffn=48, vocabulary=vocabulary, tied=tied)
    model = Architecture(type=family, **sizes).random_model().to(dtype).eval()
    for name, value in vars(model.config).items():
        if "drop" in name and isinstance(value, float):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


def make_pair(family: str = "llama", *, vocabulary: int = 31, dtype=torch.float64) -> Pair:
    student = make_model(family, vocabulary=vocabulary, seed=1, dtype=dtype)
    teacher = LanguageModel(make_model(family, vocabulary=vocabulary, seed=2, dtype=dtype)).frozen()
    return Pair(student, teacher, make_tokenizer(), vocabulary, (0, 4, 9, 20, 25))


def write_texts(folder: Path) -> None:
    """train.jsonl, val.jsonl and corpus.txt, of words that the tokenizer knows."""
    for name, first, n in (("train", 0, 12), ("val", 12, 5)):
        rows = [
            {"instruction": f"{WORDS[i]} {WORDS[i + 3]}", "input": "", "output": f"{WORDS[i + 1]} {WORDS[i + 2]}"}
            for i in range(first, first + n)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "corpus.txt").write_text(" ".join(WORDS * 20))
