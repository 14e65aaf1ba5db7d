"""A small evaluation as evaluate.py leaves it on disk: three models, three data sets, two decodings, hostile texts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

TEACHER, START, STUDENT = "runs/teacher/student", "runs/demo_start/student", "runs/demo_minillm/student"
MODELS = {TEACHER: ("teacher", "teacher"), START: ("demo/start", "student"), STUDENT: ("demo/minillm", "student")}
FILES = ["data/eval_dolly_test.jsonl", "data/eval_vicuna.jsonl", "data/a_<b>&$_set.jsonl"]
DECODINGS = ["plain", "no_repeat_ngram_6"]
SEEDS = [10, 20]
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><!-- & \u2028 \ud83d'
CHINESE, ARABIC = "海水为什么是咸的？因为河流带来盐。", "لماذا البحر مالح؟"
REFERENCES = ["Rivers carry salt.", "It is salt."]
WORDS = "the sea is salt because rivers carry minerals from rocks and the sun lifts only water into clouds".split()


def write_evaluation(
    folder: Path, *, prompts: int = 12, seeds: list[int] = SEEDS, positions: int = 40, answer_words: int = 30
) -> Path:
    """`folder` with metrics.json, answers.jsonl and tokens.jsonl. The first answer of the student is HOSTILE, the
    second prompt is Chinese; the last file has no references."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    answers, tokens = [], []
    for model in MODELS:
        for file in FILES:
            for decoding in DECODINGS:
                for seed in seeds:
                    for number in range(prompts):
                        row = _answer(draw, model, file, decoding, seed, number, answer_words)
                        answers.append(row)
                        if decoding == "plain" and seed == seeds[0] and number < 4 and model != TEACHER:
                            tokens.append(_tokens(draw, row))
    metrics = {
        "suite": "paper",
        "settings": {"models": [START, STUDENT], "seeds": seeds, "note": HOSTILE[:60]},
        "teacher": TEACHER,
        "models": {
            source: {"label": label, "role": role, "parameters": 134515008 if role == "teacher" else 117e6}
            for source, (label, role) in MODELS.items()
        },
        "answers": {
            decoding: {file: {source: _entry(draw, source, file, prompts) for source in MODELS} for file in FILES}
            for decoding in DECODINGS
        },
        "reference_loss": {FILES[0]: {source: _spread(3.1 - 0.2 * _skill(source), 0.1, prompts) for source in MODELS}},
        "position": {
            file: {source: _position(draw, source, positions) for source in (START, STUDENT)} for file in FILES
        },
        "exposure": {FILES[0]: {source: _exposure(draw, source, positions) for source in (START, STUDENT)}},
        "calibration": {task: {source: _calibration(draw, source) for source in MODELS} for task in ("sst2", "boolq")},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    for name, rows in (("answers", answers), ("tokens", tokens)):  # lone surrogates only fit into JSON's own escapes
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _skill(source: str) -> int:
    return {TEACHER: 2, START: 0, STUDENT: 1}[source]


def _answer(draw, model, file, decoding, seed, number, n_words) -> dict:
    text = " ".join(draw.choices(WORDS, k=max(1, int(draw.gauss(n_words, n_words / 3)))))
    if number == 0 and model == STUDENT:
        text = HOSTILE
    if number == 1:
        text = (CHINESE if model != START else ARABIC) + " " + text
    if number == 2 and model == START:
        text = ""
    if number == 3 and model == START:
        text = "salt " * 4000
    prompt = CHINESE if number == 1 else f"Question {number}: why is the sea salt, and a lake is not?"
    bare = file == FILES[2]
    return {
        "model": model, "file": file, "decoding": decoding, "seed": seed, "id": f"{Path(file).name}:{number + 1}",
        "prompt": prompt, "answer": text, "references": [] if bare else REFERENCES[: 1 + number % 2],
        "truncated": draw.random() < 0.1, "n_tokens": len(text.split()) + 1,
        "reverse_kl": None if model == TEACHER else draw.uniform(0.5, 1.5) * (len(text.split()) + 1),
        "rouge_l": None if bare else draw.uniform(0, 40), "exact_match": None if bare else 0.0,
    }  # fmt: skip


def _tokens(draw, row: dict) -> dict:
    pieces = [word if number == 0 else f" {word}" for number, word in enumerate(row["answer"].split(" "))]
    log_q = [-abs(draw.gauss(1, 1)) for _ in pieces]
    log_p = [min(-0.001, q + draw.gauss(-0.6, 1.8)) for q in log_q]
    head = {key: row[key] for key in ("model", "file", "decoding", "seed", "id")}
    return head | {"tokens": pieces, "log_q": log_q, "log_p": log_p}


def _spread(mean: float | None, half: float, n: int, *, interval: bool = True) -> dict:
    low, high = (mean - half, mean + half) if interval and mean is not None else (None, None)
    per_seed = {} if mean is None else {str(seed): mean + 0.2 * half * (-1) ** i for i, seed in enumerate(SEEDS)}
    return {
        "mean": mean,
        "deviation": None if mean is None else 0.28 * half,
        "low": low,
        "high": high,
        "n": n,
        "per_seed": per_seed,
    }


def _entry(draw, source: str, file: str, prompts: int) -> dict:
    skill = _skill(source) + draw.uniform(-0.2, 0.2)
    figures = {
        "length": _spread(30 + skill, 4, prompts),
        "truncated": _spread(0.1, 0.05, prompts),
        "empty": _spread(0.02, 0.02, prompts),
    }
    figures |= {
        f"distinct_{n}": _spread(0.4 + 0.13 * n + 0.01 * skill, 0.01, prompts, interval=False) for n in range(1, 5)
    }
    if source != TEACHER:
        figures |= {name: _spread(1.4 - 0.3 * skill, 0.12, prompts) for name in ("reverse_kl", "forward_kl")}
    if file == FILES[2]:
        return {"prompts": prompts, "figures": figures}
    figures |= {"rouge_l": _spread(10 + 3 * skill, 2, prompts), "exact_match": _spread(0.5 * skill, 0.5, prompts)}
    empty = {"rouge_l": _spread(None, 0, 0), "exact_match": _spread(None, 0, 0)}
    filled = {"rouge_l": _spread(9 + 3 * skill, 3, prompts // 2), "exact_match": _spread(0.0, 0, prompts // 2)}
    return {"prompts": prompts, "figures": figures, "by_length": {"0-5": filled, "6-10": filled, "11+": empty}}


def _position(draw, source: str, n: int) -> dict:
    alive = [max(0, round(60 * math.exp(-2 * t / n))) for t in range(n)]
    curves = {}
    for kind, top in (("reverse_kl", 1.6 - 0.4 * _skill(source)), ("forward_kl", 1.9 - 0.3 * _skill(source))):
        means = [top * (0.6 + 0.4 * math.exp(-t / 12)) * draw.uniform(0.8, 1.2) for t in range(n)]
        means = [mean if count > 10 else None for mean, count in zip(means, alive, strict=True)]
        curves[kind] = {"mean": means, "alive": alive}
    return curves


def _exposure(draw, source: str, n: int) -> dict:
    height = 30 if source == START else 8
    excess = [0.0, *(height * (1 - math.exp(-t / 10)) + draw.gauss(0, 0.6) for t in range(1, n - 5)), *[None] * 5]
    alive = [max(5, round(120 * math.exp(-2 * t / n))) for t in range(n)]
    error = [0.9 * (t + 1) for t in range(n)]
    around = lambda way: [None if each is None else each + way * (1 + 0.12 * t) for t, each in enumerate(excess)]  # noqa: E731
    side = {"mean": error, "alive": alive}
    return {
        "excess": excess, "low": around(-1), "high": around(1), "student_error": error, "teacher_error": error,
        "student": side, "teacher": side | {"alive": [round(0.9 * a) for a in alive]}, "first_token": 0.9,
    }  # fmt: skip


def _calibration(draw, source: str) -> dict:
    bins = []
    for number in range(10):
        count = 0 if number < 5 or (number == 6 and source == START) else draw.randint(5, 60)
        confidence = number / 10 + 0.05
        accuracy = max(0.0, confidence - 0.08 * (3 - _skill(source)) + draw.uniform(-0.05, 0.05))
        values = (confidence, accuracy) if count else (None, None)
        bins.append(
            {
                "low": number / 10,
                "high": number / 10 + 0.1,
                "count": count,
                "confidence": values[0],
                "accuracy": values[1],
            }
        )
    return {
        "ece": 0.21 - 0.06 * _skill(source), "accuracy": 0.6 + 0.08 * _skill(source), "ece_interval": [0.1, 0.3],
        "accuracy_interval": [0.5, 0.8], "bins": bins, "n": sum(each["count"] for each in bins), "dropped": 3,
        "words": ["negative", "positive"],
    }  # fmt: skip
