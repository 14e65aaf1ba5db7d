"""Answers side by side, in the small form that the page carries: names as numbers, each prompt once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minillm.common.labels import seed_name
from minillm.evaluation.report.plots import slot
from minillm.evaluation.report.source import Evaluation, Training


class _Numbers(dict):
    """A number for each new key, in order."""

    def of(self, key: Any) -> int:
        return self.setdefault(key, len(self))


def samples_of(source: Evaluation | Training) -> dict:
    """models: label, and slot of its colour. files, decodings, seeds: names. prompts: [file, id, text, references].
    answers: [model, prompt, decoding, seed, text, cut off, tokens, reverse KL a token, Rouge-L, exact match, number in
    `tokens` or -1]. tokens: [pieces, log p - log q, log q]."""
    if isinstance(source, Evaluation):
        models = {model.source: {"label": model.label, "slot": slot(model.style)} for model in source.models}
        return _pack(models, source.files, source.answers, source.tokens)
    teacher = any("teacher" in row for rows in source.samples.values() for row in rows)
    models = {"teacher": {"label": "teacher (greedy)", "slot": 0}} if teacher else {}
    rows: list[dict] = []
    names = list(source.samples)
    for number, stage in enumerate(names, start=1):
        models[stage] = {"label": stage.replace("_", " "), "slot": slot(number)}
        for row in source.samples[stage]:
            common = {"file": "validation", "decoding": "validation", "id": row["id"], "prompt": row["prompt"]}
            if teacher and stage == names[0]:
                rows.append(common | {"model": "teacher", "answer": row.get("teacher", ""), "seed": row.get("seed")})
            rows.append(row | common | {"model": stage})
    return _pack(models, {"validation": "validation"}, rows, [])


def _pack(models: dict[str, dict], files: dict[str, str], answers: Iterable[dict], tokens: Iterable[dict]) -> dict:
    order = {source: number for number, source in enumerate(models)}
    file_numbers = {file: number for number, file in enumerate(files)}
    names, decodings, seeds, prompts = list(files.values()), _Numbers(), _Numbers(), _Numbers()
    texts, rows, pieces, coloured = [], [], [], {}
    for row in tokens:
        coloured[_key(row)] = len(pieces)
        pairs = zip(row["log_p"], row["log_q"], strict=True)
        differences = [None if p is None or q is None else round(p - q, 3) for p, q in pairs]
        pieces.append([row["tokens"], differences, [_rounded(q, 3) for q in row["log_q"]]])
    for row in answers:
        if row["file"] not in file_numbers:
            file_numbers[row["file"]] = len(names)
            names.append(row["file"])
        place = (row["file"], row["id"])
        if place not in prompts:
            texts.append([file_numbers[row["file"]], row["id"], row["prompt"], row.get("references") or []])
        n_tokens, kl = row.get("n_tokens"), row.get("reverse_kl")
        rows.append(
            [
                order[row["model"]],
                prompts.of(place),
                decodings.of(row["decoding"]),
                seeds.of(seed_name(row.get("seed"))),
                row["answer"],
                int(bool(row.get("truncated"))),
                n_tokens,
                None if kl is None or not n_tokens else round(kl / n_tokens, 3),  # summed over tokens in the file
                _rounded(row.get("rouge_l"), 1),
                _rounded(row.get("exact_match"), 1),
                coloured.get(_key(row), -1),
            ]
        )
    return {
        "models": list(models.values()),
        "files": names,
        "decodings": list(decodings),
        "seeds": list(seeds),
        "prompts": texts,
        "answers": rows,
        "tokens": pieces,
    }


def _key(row: dict) -> tuple:
    return (row["model"], row["file"], row["decoding"], seed_name(row.get("seed")), row["id"])


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
