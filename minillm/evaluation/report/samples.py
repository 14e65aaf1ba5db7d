"""Answers side by side, as samples.js reads them: each prompt once, and of an answer what is shown."""

from __future__ import annotations

from minillm.evaluation.report.plots import slot
from minillm.evaluation.report.source import Evaluation, Training

_ANSWER = (
    "model", "file", "id", "decoding", "seed", "answer", "truncated", "n_tokens", "reverse_kl", "rouge_l", "exact_match"
)  # fmt: skip


def samples_of(source: Evaluation | Training) -> dict:
    """models: source, label, and slot of its colour; files: with their short names; prompts, answers and tokens by the
    names that they have in the files of the run."""
    if isinstance(source, Evaluation):
        models = [(model.source, model.label, model.style) for model in source.models]
        files, answers, tokens = dict(source.files), source.answers, source.tokens
    else:
        models, answers = _stages(source)
        files, tokens = {}, []
    prompts = {}
    for row in answers:
        files.setdefault(row["file"], row["file"])
        prompt = {name: row[name] for name in ("file", "id", "prompt")} | {"references": row.get("references") or []}
        prompts.setdefault((row["file"], row["id"]), prompt)
    return {
        "models": [{"source": name, "label": label, "slot": slot(style)} for name, label, style in models],
        "files": list(files.items()),
        "prompts": list(prompts.values()),
        "answers": [{name: row[name] for name in _ANSWER if row.get(name) is not None} for row in answers],
        "tokens": [row for row in tokens if (row["file"], row["id"]) in prompts],
    }


def _stages(source: Training) -> tuple[list[tuple[str, str, int]], list[dict]]:
    """The stages of a training run as models, and their answers. The teacher's are the same at every stage."""
    first = next(iter(source.samples.values()), [])
    teacher = [
        {name: row.get(name) for name in ("id", "prompt", "references", "seed")} | {"answer": row["teacher"]}
        for row in first
        if "teacher" in row
    ]
    columns = ({"teacher (greedy)": teacher} if teacher else {}) | source.samples
    models = [(name, name.replace("_", " "), style) for style, name in enumerate(columns, start=0 if teacher else 1)]
    place = {"file": "validation", "decoding": "validation"}
    return models, [row | place | {"model": name} for name, rows in columns.items() for row in rows]
