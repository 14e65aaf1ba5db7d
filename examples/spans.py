"""python -m examples.spans DIR: a student learns from a teacher with other tokens, on the task of examples.narrow.

Teacher and student have byte-pair vocabularies of their own. The teacher is fine-tuned on 6,000 rows, the student on
1,000 of them. The student then goes on in two ways, with equal tokens in updates: span-aligned reverse KL on its own
answers, or more fine-tuning. DIR/results.json has the reverse KL in nats a byte on held-out prompts, with 95% intervals
over prompts. What is there already is not made again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import minillm
from examples import narrow
from minillm.data import PromptSet, Sources
from minillm.evaluation.answers import answer_prompts
from minillm.models import Architecture, FromScratch, LanguageModel, ModelPair, Pair

CPU = torch.device("cpu")
LENGTHS = dict(max_prompt_tokens=64, max_response_tokens=48)
FEW = 1000  # rows of the student
ANSWERS = 128  # a rollout, which is one optimizer step
SIZES = {"teacher": dict(layers=3, width=96, ffn=256), "student": dict(layers=2, width=48, ffn=128)}
TOKENS = {"teacher": 512, "student": 352}
TURN = {"teacher": "question: ", "student": "user "}


def make_tokenizer(side: str, task: Path) -> None:
    """Byte-level BPE, trained on the training file; the sides differ in size and in how they write a turn."""
    rows = map(json.loads, (task / "train.jsonl").read_text().splitlines())
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    sizes = dict(vocab_size=TOKENS[side], special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(
        [f"{row['instruction']} {row['input']}\n{row['output']}" for row in rows], trainers.BpeTrainer(**sizes)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '" + TURN[side] + "' + m['content'] + '\n' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    fast.save_pretrained(task / f"{side}_tokenizer")


def write_task(task: Path) -> None:
    narrow.write(task)
    rows = (task / "train.jsonl").read_text().splitlines(keepends=True)
    (task / "few.jsonl").write_text("".join(rows[:FEW]))
    for side in TOKENS:
        make_tokenizer(side, task)


def new_model(side: str, task: Path, seed: int) -> Pair:
    sizes = dict(heads=4, kv_heads=4, vocabulary=TOKENS[side], tied=True, **SIZES[side])
    scratch = FromScratch(Architecture(type="llama", **sizes), str(task / f"{side}_tokenizer"), seed)
    return ModelPair(student=scratch).load(CPU, seed)


def load(student: str, teacher: str | None = None) -> Pair:
    return ModelPair(student, teacher, tokenizers="separate" if teacher else "shared").load(CPU)


def made(target: Path, make: Callable[[], minillm.Run]) -> str:
    """The name of a directory with a trained model, which is made if it is not there."""
    if not (target / "history.json").exists():
        run = make()
        run.student.save_pretrained(target)
        (target / "history.json").write_text(json.dumps(run.history))
    return str(target)


def fine_tune(pair: Pair, task: Path, steps: int, seed: int, file: str = "few.jsonl") -> minillm.Run:
    sizes = minillm.Supervised(minibatch_size=64, microbatch_size=64)
    optim = minillm.Optim(learning_rate=3e-3, warmup_steps=min(50, steps // 10), schedule="cosine")
    files = dict(prompts=task / file, validation=task / "val.jsonl", data=LENGTHS)
    return minillm.finetune(pair, **files, steps=steps, regime=sizes, optim=optim, seed=seed, preflight=False)


def learn_spans(pair: Pair, task: Path, rounds: int, seed: int) -> minillm.Run:
    sizes = minillm.OnPolicy(rollouts=ANSWERS, minibatch_size=ANSWERS, inner_epochs=1, microbatch_tokens=4096)
    sampler = minillm.Sampler(alpha=0.0, max_new_tokens=LENGTHS["max_response_tokens"], batch_size=ANSWERS)
    optim = minillm.Optim(learning_rate=3e-4, warmup_steps=10, schedule="cosine")
    files = dict(prompts=task / "few.jsonl", validation=task / "val.jsonl", data=LENGTHS)
    how = dict(objective=minillm.SpanReverseKL(), sampler=sampler, regime=sizes, optim=optim)
    return minillm.distill(pair, **files, **how, steps=rounds, validate_every=30, seed=seed, preflight=False)


def measure(pair: Pair, prompts: PromptSet, samples: int) -> tuple[torch.Tensor, dict[str, float]]:
    """[prompts, 2]: sums of log q - log p and of bytes over the answers to each prompt; and what the answers are."""
    model, n = LanguageModel(pair.student, pair.n_vocab), len(prompts)
    how = dict(max_new_tokens=LENGTHS["max_response_tokens"], batch_size=200, stop_ids=pair.stop_ids, spans=pair)
    answers = answer_prompts(model, prompts, pair.tokenizer, seeds=range(samples), **how)
    kept = [(row % n, each) for row, each in enumerate(answers) if each.spans_kl is not None]
    sums = torch.zeros(n, 2, dtype=torch.float64)
    for row, each in kept:
        sums[row] += torch.tensor([each.spans_kl, len(each.answer.encode())], dtype=torch.float64)
    own = [pair.tokenizer(each.answer, add_special_tokens=False)["input_ids"] for _, each in kept]
    return sums, {
        "dropped": 1 - len(kept) / len(answers),
        "truncated": sum(each.truncated for each in answers) / len(answers),
        "canonical": sum(ids == list(each.tokens[: len(ids)]) for ids, (_, each) in zip(own, kept, strict=True))
        / len(kept),
        "bytes": float(sums[:, 1].sum()) / len(kept),
    }


def ratio(sums: torch.Tensor) -> float:
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def interval(*sums: torch.Tensor) -> tuple[float, float]:
    """A ratio of sums, or the difference of two on the same prompts, and half of its 95% interval over prompts."""
    rests = [(each[:, 0] - ratio(each) * each[:, 1]) / each[:, 1].mean() for each in sums]
    rest = rests[0] - sum(rests[1:])
    return ratio(sums[0]) - sum(map(ratio, sums[1:])), 1.96 * float(rest.std()) / math.sqrt(len(rest))


def one_seed(folder: Path, teacher: str, seed: int, start_steps: int, rounds: int, samples: int) -> dict:
    task = folder / "task"
    start = made(folder / f"start-{seed}", lambda: fine_tune(new_model("student", task, seed), task, start_steps, seed))
    spans = made(folder / f"spans-{seed}", lambda: learn_spans(load(start, teacher), task, rounds, seed))
    history = json.loads((Path(spans) / "history.json").read_text())
    lengths = [(1 - row["rollout/dropped"]) * row["rollout/length"] for row in history if "rollout/length" in row]
    data = Sources(str(task / "few.jsonl"), str(task / "val.jsonl"), template="chat", **LENGTHS)
    train, prompts = data.prompts(*data.records(), load(start, teacher))
    n_tokens = ANSWERS * sum(lengths)
    steps = round(n_tokens / (64 * sum(map(len, train.reference_ids)) / len(train)))
    sft = made(folder / f"sft-{seed}", lambda: fine_tune(load(start), task, steps, seed + 100))
    sums, facts = {}, {}
    for name, model in (("start", start), ("spans", spans), ("sft", sft)):
        sums[name], facts[name] = measure(load(model, teacher), prompts, samples)
        facts[name]["kl_per_byte"] = interval(sums[name])
    differences = {f"spans - {name}": interval(sums["spans"], sums[name]) for name in ("start", "sft")}
    return facts | differences | {"tokens": n_tokens, "sft_steps": steps}


def main(
    folder: Path,
    seeds: Sequence[int] = (0, 1, 2),
    teacher_steps: int = 1500,
    start_steps: int = 500,
    rounds: int = 240,
    samples: int = 8,
) -> dict:
    """`samples` answers to each held-out prompt measure the KL."""
    task = folder / "task"
    if not (task / "student_tokenizer").exists():
        write_task(task)
    new = lambda: fine_tune(new_model("teacher", task, 0), task, teacher_steps, 0, "train.jsonl")  # noqa: E731
    teacher = made(folder / "teacher", new)
    found = {seed: one_seed(folder, teacher, seed, start_steps, rounds, samples) for seed in seeds}
    (folder / "results.json").write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1])), indent=1)) if sys.argv[1:] else sys.exit(__doc__)
