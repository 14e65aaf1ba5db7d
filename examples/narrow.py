"""python -m examples.narrow DIR: an instruction task made up for `make reproduce`, with a small tokenizer.

Word lists to copy, reverse, sort and count, and pairs of things to describe, of which many descriptions are right. A
small transformer learns it in minutes from nothing, a smaller one learns it less well: a teacher and its student. The
command also says how long `make reproduce` will take on this machine.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.models import Architecture

NOUNS = (
    "apple bird boat book cat cloud coat cup dog door duck farm fish fox garden goat hill horse house lake lamp leaf "
    "moon mouse owl pond rabbit river road rose sheep ship star stone tree"
).split()
ADJECTIVES = "big black blue cold green grey old quiet red small tall warm white young".split()
VERBS = "finds follows likes sees watches".split()
PLACES = "above behind below beside near under".split()
NUMBERS = "zero one two three four five six seven eight".split()
KINDS = ("copy", "reverse", "sort", "count", "describe")
TESTS = ("lists", "longer", "describe")  # longer: lists of lengths that are never trained on
# How long `make reproduce` and its SIZE=small took on two cores, in the unit of `step_seconds`.
_CHAIN_STEPS = (4400, 1250)

_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'user ' + m['content'] + ' ' }}"
    "{% else %}{{ m['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'answer ' }}{% endif %}"
)


def example(kind: str, rng: random.Random, lengths: tuple[int, int] = (3, 5)) -> dict[str, str]:
    """A row of the MiniLLM schema; for lists `lengths` are the fewest and the most words."""
    if kind == "describe":
        things = [f"{rng.choice(ADJECTIVES)} {noun}" for noun in rng.sample(NOUNS, 2)]
        return {"instruction": "describe", "input": " and ".join(things), "output": _description(things, rng)}
    n = rng.randint(*lengths)
    words = rng.choices(rng.sample(NOUNS, 3), k=n) if kind == "count" else rng.sample(NOUNS, n)
    match kind:
        case "copy":
            answer = " ".join(words)
        case "reverse":
            answer = " ".join(reversed(words))
        case "sort":
            answer = " ".join(sorted(words))
        case "count":
            answer = " and ".join(f"{NUMBERS[count]} {word}" for word, count in Counter(words).items())
    return {"instruction": kind, "input": " ".join(words), "output": answer}


def _description(things: list[str], rng: random.Random) -> str:
    """Two sentences about two things, in either order; the second takes up the first by name."""
    first, second = rng.sample(things, 2)
    where = f"is {rng.choice(PLACES)} the {rng.choice(NOUNS)}"
    does = f"{rng.choice(VERBS)} the {second}"
    start, end = rng.sample([where, does], 2)
    return f"the {first} {start} . the {first.split()[1]} {end} ."


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; pad = eos."""
    words = ["<end>", "<unknown>", "user", "answer", *KINDS, *NOUNS, *ADJECTIVES, *VERBS, *PLACES, *NUMBERS]
    words += ["the", "is", "and", "."]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )
    fast.chat_template = _CHAT
    return fast


def rows(name: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of train, val or one of TESTS: different prompts in each, always the same ones."""
    rng = random.Random(f"{seed} {name}")
    kinds = {"describe": ("describe",), "lists": KINDS[:4], "longer": KINDS[:4]}.get(name, KINDS)
    lengths = (6, 7) if name == "longer" else (3, 5)
    return [example(rng.choice(kinds), rng, lengths) for _ in range(count)]


def write(folder: Path, n_train: int = 6000, n_val: int = 200, n_test: int = 200) -> None:
    """train.jsonl, val.jsonl, corpus.jsonl, test_<name>.jsonl and tokenizer/; no prompt is in two of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[tuple[str, str]] = set()
    sizes = {f"test_{name}": n_test for name in TESTS} | {"val": n_val, "train": n_train}
    for name, size in sizes.items():
        made = rows(name.removeprefix("test_"), 4 * size)
        kept = list({(row["instruction"], row["input"]): row for row in made}.items())
        kept = [(key, row) for key, row in kept if key not in seen][:size]
        seen.update(key for key, _ in kept)
        _write_lines(folder / f"{name}.jsonl", [row for _, row in kept])
    rng = random.Random("corpus")
    texts = [" ".join(example("describe", rng)["output"] for _ in range(8)) for _ in range(500)]
    _write_lines(folder / "corpus.jsonl", [{"text": text} for text in texts])
    make_tokenizer().save_pretrained(folder / "tokenizer")


def _write_lines(file: Path, values: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def step_seconds() -> float:
    """Of a forward and backward pass of a model as large as the task's teacher, on one thread like the chain's
    stages."""
    sizes = dict(layers=4, width=128, heads=4, kv_heads=4, ffn=384, vocabulary=96)
    model = Architecture("llama", **sizes, tied=True).random_model()
    torch.set_num_threads(1)
    ids, seconds = torch.zeros(64, 48, dtype=torch.long), []
    for _ in range(15):
        began = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def main() -> None:
    if not sys.argv[1:]:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
    step = step_seconds()
    whole, small = (f"{steps * step / 60:.0f}" for steps in _CHAIN_STEPS)
    print(f"On this machine make reproduce takes about {whole} minutes, with SIZE=small {small}.", flush=True)


if __name__ == "__main__":
    main()
