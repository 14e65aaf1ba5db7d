"""One run of `benchmarks.objectives`: a method, a learning rate and a seed, on the task of examples/narrow.py."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

KINDS = ("lists", "describe", "longer")
ROWS, ANSWER = 64, 32  # answers of an optimizer step, tokens of an answer at most
DATA = dict(template="chat", max_prompt_tokens=24, max_response_tokens=ANSWER, block_size=64)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # learning rates
FIRST = (3, 6)  # of which these are tried first


@dataclass(frozen=True)
class Method:
    """`objective` is a class of `minillm.objectives`, made with these `arguments`; `corpus` of L_PT; `alpha`: the
    teacher's share in drawing."""

    kind: Literal["supervised", "on_policy"]
    objective: str
    arguments: dict[str, Any]
    inner_epochs: int = 1
    corpus: Literal["none", "plain", "kd"] = "none"
    alpha: float = 0.0


_REFERENCE = dict(skip_current=False, gamma=0.95, reward_scaling=0.5, reward_clip=100.0, whitening="all",
                  single_weight=False, denominator="micro_batch")  # fmt: skip
METHODS = {
    "sft": Method("supervised", "CrossEntropy", {}),
    "kd": Method("supervised", "CrossEntropy", {"kd_ratio": 0.5}),
    "seqkd": Method("supervised", "CrossEntropy", {"kd_ratio": 0.5}),  # on the teacher's answers
    "minillm": Method("on_policy", "MiniLLM", {}, inner_epochs=2, corpus="plain", alpha=0.2),
    "reference": Method("on_policy", "MiniLLM", _REFERENCE, inner_epochs=2, corpus="kd", alpha=0.2),
    "minillm_nopt": Method("on_policy", "MiniLLM", {}, inner_epochs=2, alpha=0.2),
    "opd": Method("on_policy", "ReverseKL", {}),
    "jsd": Method("on_policy", "JensenShannon", {"beta": 0.5}),
    "skew_reverse": Method("on_policy", "SkewReverse", {"alpha": 0.1}),
    "adaptive_kl": Method("on_policy", "AdaptiveKL", {"mass": 0.5}),
    "sampled": Method("on_policy", "Sampled", {}),
}


def _model(folder: Path, layers: int, width: int, ffn: int, seed: int):
    from minillm.models import Architecture, FromScratch, ModelPair, device_of

    shape = Architecture(type="llama", layers=layers, width=width, heads=4, kv_heads=4, ffn=ffn, vocabulary=96,
                         tied=True)  # fmt: skip
    student = FromScratch(tokenizer=str(folder / "tokenizer"), seed=seed, architecture=shape)
    return ModelPair(student=student).load(device_of("cpu"))


def _finetuned(folder: Path, name: str, pair, epochs: int, rate: float) -> None:
    import minillm

    if (folder / name).exists():
        return
    options = dict(validation=folder / "val.jsonl", data=DATA, preflight=False)
    optim = minillm.Optim(learning_rate=rate, warmup_steps=50, schedule="cosine")
    regime = minillm.Supervised(minibatch_size=ROWS, microbatch_size=ROWS, epochs=epochs)
    run = minillm.finetune(pair, folder / "train.jsonl", regime=regime, optim=optim, **options)
    run.student.save_pretrained(folder / name)


def make_teacher(folder: Path) -> None:
    _finetuned(folder, "teacher", _model(folder, 4, 128, 384, seed=0), epochs=10, rate=2e-3)


def make_start(folder: Path) -> None:
    _finetuned(folder, "start", _model(folder, 2, 40, 112, seed=0), epochs=4, rate=3e-3)


def make_teacher_answers(folder: Path) -> None:
    """One sampled answer to each training prompt, for SeqKD."""
    import minillm

    file = folder / "answers.jsonl"
    if not file.exists():
        rows = minillm.generate(
            folder / "teacher", folder / "train.jsonl", max_new_tokens=ANSWER, batch_size=200, data=DATA
        )
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _file(folder: Path, run: tuple[str, float, int]) -> Path:
    return folder / "finished" / "{}-{:g}-{}.json".format(*run)


def finished(folder: Path, run: tuple[str, float, int]) -> dict | None:
    """The figures of a run (method, learning rate, seed), None where it has not been made."""
    file = _file(folder, run)
    return json.loads(file.read_text()) if file.exists() else None


def _answer_length(file: Path, tokenizer) -> float:
    """Mean tokens of the answers of a file, each with its end token."""
    from minillm.data import read_records

    texts = [record.references[0] for record in read_records(str(file)) if record.references]
    return sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts) / len(texts)


def run_one(folder: Path, tokens: int, run: tuple[str, float, int]) -> str:
    """Train and measure; the figures are kept in a file. `start` is measured only."""
    import minillm

    name, rate, seed = run
    pair = minillm.load_pair(student=folder / "start", teacher=folder / "teacher", device="cpu")
    figures: dict[str, Any] = {"tokens": 0}
    if name != "start":
        figures["tokens"] = _train(folder, tokens, METHODS[name], name, rate, seed, pair)
    file = _file(folder, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(figures | _measured(folder, pair)))
    aside.replace(file)
    return f"{name}, learning rate {rate:g}, seed {seed}: {figures['tokens']:,} tokens"


def _train(folder: Path, tokens: int, method: Method, name: str, rate: float, seed: int, pair) -> int:
    """The tokens of answers in its updates."""
    import minillm
    from minillm import objectives

    objective = getattr(objectives, method.objective)(**method.arguments)
    supervised = method.kind == "supervised"
    source = folder / ("answers.jsonl" if name == "seqkd" else "train.jsonl")
    mean = _answer_length(source, pair.tokenizer)  # the start's answers are about as long as the data's
    steps = max(1, round(tokens / ROWS / mean))
    optim = minillm.Optim(learning_rate=rate, warmup_steps=20, schedule="cosine" if supervised else "constant")
    options = dict(steps=steps, objective=objective, optim=optim, data=DATA, seed=seed, preflight=False)
    options["validation"] = [{"instruction": "copy", "input": "cat", "output": "cat"}]  # measured by `_measured`
    if supervised:
        regime = minillm.Supervised(minibatch_size=ROWS, microbatch_size=ROWS)
        minillm.finetune(pair, source, regime=regime, **options)
        return round(steps * ROWS * mean)
    regime = minillm.OnPolicy(rollouts=ROWS * method.inner_epochs, minibatch_size=ROWS,
                              inner_epochs=method.inner_epochs)  # fmt: skip
    sampler = minillm.Sampler(alpha=method.alpha, max_new_tokens=ANSWER, batch_size=ROWS * method.inner_epochs)
    regulariser = None
    if method.corpus != "none":
        regulariser = minillm.PretrainLoss(batch_size=16, kd_ratio=0.5 if method.corpus == "kd" else 0.0)
    corpus = None if regulariser is None else folder / "corpus.jsonl"
    options |= dict(regime=regime, sampler=sampler, corpus=corpus, regulariser=regulariser)
    run = minillm.distill(pair, source, **options)
    lengths = [row["rollout/length"] for row in run.history if "rollout/length" in row]
    return round(steps * ROWS * sum(lengths) / len(lengths))


def _measured(folder: Path, pair) -> dict[str, Any]:
    """(sums, weights) of each prompt; distinct-4 has one of each."""
    import minillm
    from minillm.data import read_records
    from minillm.evaluation.answers import answer_prompts, figure_values
    from minillm.evaluation.metrics import FIGURES, distinct
    from minillm.models import LanguageModel
    from minillm.objectives.linear_loss import LinearLoss
    from minillm.rollout import Sampler, rollout_divergence

    model, chosen = LanguageModel(pair.student.eval(), pair.n_vocab), [f for f in FIGURES if f.key == "rouge_l"]
    sizes = dict(max_new_tokens=ANSWER, batch_size=200, stop_ids=pair.stop_ids)
    found: dict[str, tuple[list, list]] = {}
    ids: list[tuple[int, ...]] = []
    for name in ("val", *(f"test_{kind}" for kind in KINDS)):
        records = read_records(str(folder / f"{name}.jsonl"))
        prompts = minillm.api.inputs.sources_of(pair, DATA).evaluation_prompts(records, pair, name)
        teacher = None if name == "val" else pair.teacher
        answers = answer_prompts(model, prompts, pair.tokenizer, seeds=[1], teacher=teacher, **sizes)
        rouge = figure_values(answers, [record.references for record in records], chosen)["rouge_l"]
        if name == "val":
            validation = sum(rouge[0]) / len(rouge[0])
            continue
        side = "rouge_l_out" if name == "test_longer" else "rouge_l_in"
        _extend(found, side, rouge)
        ids += [answer.tokens for answer in answers]
        _extend(found, "reverse_kl", ([answer.reverse_kl for answer in answers], [len(a.tokens) for a in answers]))
        ends = dict(stop_ids=pair.stop_ids, pad_id=pair.pad_id)
        sampler = Sampler(alpha=0.0, max_new_tokens=ANSWER, batch_size=200)
        batch = prompts.batch(range(len(prompts)))
        theirs = sampler.rollout(pair.teacher, pair.teacher, batch, list(range(len(prompts))), **ends)
        forward_BR = rollout_divergence(model, pair.teacher, theirs, LinearLoss(), max_tokens=8192).forward_kl_BR
        _extend(found, "forward_kl", (forward_BR.sum(-1).tolist(), theirs.response_mask_BR.sum(-1).tolist()))
    return found | {"validation_rouge_l": validation, "distinct_4": ([distinct(ids)["distinct_4"]], [1])}


def _extend(found: dict, key: str, more: tuple[list, list]) -> None:
    for have, new in zip(found.setdefault(key, ([], [])), more, strict=True):
        have.extend(new)
