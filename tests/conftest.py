"""Tiny models and a tokenizer made on the spot: no network, no downloads."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.models import Architecture, LanguageModel, Pair
from minillm.parallel import Group
from tests.helpers import on_threads

# A job in the background of a script ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
    tied: bool = False,
    dtype=torch.float64,
):
    """Random weights, large enough that distributions are far from uniform."""
    torch.manual_seed(seed)
    kv_heads = 4 if family in ("gpt2", "opt") else 2
    sizes = dict(layers=layers, width=32, heads=4, kv_heads=kv_heads, ffn=48, vocabulary=vocabulary, tied=tied)
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark cases of a test with `some(n)` as slow, all but n that are spread over them."""
    cases: dict[str, list] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for each in cases.values():
        if mark := each[0].get_closest_marker("some"):
            quick = {number * len(each) // mark.args[0] for number in range(mark.args[0])}
            for number, item in enumerate(each):
                if number not in quick:
                    item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Nothing is left in the user's own cache, nor taken from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def pair() -> Pair:
    return make_pair()


@pytest.fixture
def ranks(monkeypatch):
    """Three ranks as threads: what each sends is seen by all at a barrier."""
    size, meeting, box = 3, threading.Barrier(3), {}
    mine = threading.local()

    def exchange(value):
        box[mine.rank] = value
        meeting.wait()
        everyone = [box[rank] for rank in range(size)]
        meeting.wait()
        return everyone

    def all_gather_object(out, value, group=None):
        out[:] = exchange(value)

    def all_gather(out, tensor, group=None):
        for to, each in zip(out, exchange(tensor.clone()), strict=True):
            to.copy_(each)

    def all_reduce(tensor, group=None):
        tensor.copy_(torch.stack(exchange(tensor.clone())).sum(0))

    for function in (all_gather_object, all_gather, all_reduce):
        monkeypatch.setattr(dist, function.__name__, function)

    def run(work):
        def one(rank):
            mine.rank = rank
            return work(Group(rank, size))

        return on_threads(size, one)

    return run
