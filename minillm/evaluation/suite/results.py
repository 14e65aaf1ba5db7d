"""From finished units to metrics.json, answers.jsonl and tokens.jsonl: figures, their spread, and the ids they rest on.

Axes: S seeds, N prompts, B samples, R positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from statistics import mean, stdev
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence

from minillm.common.labels import labels, seed_name
from minillm.data import Record
from minillm.evaluation import figure_values
from minillm.evaluation.judge.verdict import ratio_interval, ratio_over_seeds
from minillm.evaluation.metrics import (
    FIGURES,
    Figure,
    PositionMeans,
    PrefixKL,
    by_length,
    calibration_figures,
    exposure_curve,
    exposure_interval,
    over_seeds,
    pooled,
)
from minillm.evaluation.suite.settings import Suite
from minillm.evaluation.suite.units import Store, Unit, answers, chunks

Rows = dict[int | None, list[dict]]  # of each seed, in the order of the records
NOTHING = {"mean": None, "deviation": None, "low": None, "high": None, "n": 0, "per_seed": {}}


def results_of(suite: Suite, store: Store) -> dict:
    """What metrics.json holds."""
    names, measures = labels(suite.models), suite.measures
    out: dict = {
        "suite": measures.name,
        "settings": suite.settings,
        "teacher": suite.teacher,
        "models": {
            source: {"label": names[source], "role": "teacher" if source == suite.teacher else "student"}
            | store.read(Unit("model", source))
            for source in suite.models
        },
        "figures": {figure.key: figure.facts() for figure in measures.all_figures},
        "notes": [*suite.notes],
        "answers": {},
        "reference_loss": {},
        "position": {},
        "exposure": {},
        "calibration": {
            task: {source: _calibration(store.read(Unit("calibration", source, task)), calibration.words)
            for source in suite.models}
            for task, (calibration, _) in suite.tasks.items()
        },
    }  # fmt: skip
    if measures.judge:
        out["judge"] = {}
    for file in suite.records:
        answered: dict[str, list[str]] = {}
        for source in suite.models:
            for decoding in measures.decodings:
                rows = answers(suite, store, source, file, decoding)
                kept = [row["id"] for row in rows[suite.seeds[0]]]
                by_id = {record.id: record.references for record in suite.records[file]}
                figures = answer_figures(rows, by_id, measures.all_figures)
                if measures.judge:
                    figures |= _judge(suite, store, out["judge"], source, file, decoding)
                _put(out["answers"], decoding, file, source, value={
                    "prompts": len(kept), "figures": figures, "by_length": length_bins(rows)
                })  # fmt: skip
            answered[source] = kept
            if measures.reference_loss:
                _put(out["reference_loss"], file, source, value=_reference_loss(store, source, file))
            if suite.teacher is not None and source != suite.teacher:
                if measures.plain:
                    _put(out["position"], file, source, value=_position(suite, store, source, file))
                if measures.exposure:
                    _put(out["exposure"], file, source, value=_exposure(suite, store, source, file))
        if len({tuple(ids) for ids in answered.values()}) > 1:
            counts = ", ".join(f"{names[source]} {len(ids)}" for source, ids in answered.items())
            out["notes"].append(
                f"{file}: the models answered different prompts ({counts}), because each counts its own tokens; raise "
                "data.max_prompt_tokens to compare them on the same"
            )
    return out


def answer_lines(suite: Suite, store: Store) -> Iterator[str]:
    """The lines of answers.jsonl."""
    for where, row, record in _all_answers(suite, store):
        shown = {name: row[name] for name in ("truncated", "reverse_kl", "rouge_l", "exact_match")}
        texts = {"prompt": record.conversation, "answer": row["answer"], "references": record.references}
        yield _line(where | texts | shown | {"n_tokens": len(row["tokens"])})


def token_lines(suite: Suite, store: Store) -> Iterator[str]:
    """The lines of tokens.jsonl."""
    for where, row, _ in _all_answers(suite, store):
        if "pieces" in row:
            yield _line(where | {"tokens": row["pieces"], "log_q": row["log_q"], "log_p": row["log_p"]})


def _all_answers(suite: Suite, store: Store) -> Iterator[tuple[dict, dict, Record]]:
    for source, (file, records), decoding in product(suite.models, suite.records.items(), suite.measures.decodings):
        by_id = {record.id: record for record in records}
        for seed, own in answers(suite, store, source, file, decoding).items():
            where = {"model": source, "file": file, "decoding": decoding, "seed": seed}
            for row in own:
                yield where | {"id": row["id"]}, row, by_id[row["id"]]


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _put(out: dict, *path: str, value: object) -> None:
    if value is None:
        return
    for name in path[:-1]:
        out = out.setdefault(name, {})
    out[path[-1]] = value


def spread(values: dict[int | None, Sequence[float]], weights: dict[int | None, Sequence[float]]) -> dict:
    """Mean, deviation and interval (see `over_seeds`) of a figure that each seed has for each prompt, with the figure
    of each seed."""
    found = over_seeds(list(values.values()), list(weights.values()))
    if not found.n:
        return dict(NOTHING)
    return asdict(found) | {
        "per_seed": {seed_name(seed): sum(own) / sum(weights[seed]) for seed, own in values.items()}
    }


def answer_figures(
    rows: Rows, references: Mapping[str, Sequence[str]] | None = None, figures: Sequence[Figure] = FIGURES
) -> dict[str, dict]:
    """The figures that apply, each over prompts and seeds. `references` by the id of the row."""
    by_seed = {seed: _figure_values(own, references or {}, figures) for seed, own in rows.items()}
    n = len(next(iter(rows.values())))
    found = {}
    for key, first in next(iter(by_seed.values())).items():
        if isinstance(first, float):
            values = {seed_name(seed): each[key] for seed, each in by_seed.items()}
            deviation = stdev(values.values()) if len(values) > 1 else None
            found[key] = NOTHING | {"mean": mean(values.values()), "deviation": deviation, "n": n, "per_seed": values}
        else:
            values, weights = ({seed: each[key][at] for seed, each in by_seed.items()} for at in (0, 1))
            found[key] = spread(values, weights)
    return found


def _figure_values(rows: list[dict], references: Mapping[str, Sequence[str]], figures: Sequence[Figure]) -> dict:
    answers = [SimpleNamespace(**row) for row in rows]
    return figure_values(answers, [references.get(row["id"], ()) for row in rows], figures)


def length_bins(rows: Rows) -> dict[str, dict]:
    """By tokens of the shortest reference; nothing where a prompt has none."""
    first = next(iter(rows.values()))
    if any(row["reference_length"] is None for row in first):
        return {}
    bins = by_length(range(len(first)), [row["reference_length"] for row in first])
    ones = {name: {seed: [1] * len(members) for seed in rows} for name, members in bins.items()}
    return {
        name: {
            figure: spread({seed: [own[at][figure] for at in members] for seed, own in rows.items()}, ones[name])
            for figure in ("rouge_l", "exact_match")
        }
        for name, members in bins.items()
    }


def _reference_loss(store: Store, source: str, file: str) -> dict | None:
    rows = store.read(Unit("references", source, file))["rows"]
    if not rows:
        return None
    found = over_seeds([[row["loss"] for row in rows]], [[row["tokens"] for row in rows]])
    return asdict(found) | {"per_seed": {}}


def _position(suite: Suite, store: Store, source: str, file: str) -> dict:
    parts = [
        position
        for chunk in chunks(suite, file)
        if (position := store.read(Unit("answers", source, file, suite.measures.plain, chunk=chunk))["position"])
    ]
    return {
        name: asdict(pooled([PositionMeans(tuple(part[name]["mean"]), tuple(part[name]["alive"])) for part in parts]))
        for name in ("reverse_kl", "forward_kl")
    }


def _exposure(suite: Suite, store: Store, source: str, file: str) -> dict | None:
    """None where no prompt was short enough to be kept."""
    numbers = chunks(suite, file, suite.measures.exposure.limit)
    parts = [store.read(Unit("exposure", source, file, chunk=chunk)) for chunk in numbers]
    sides = [_prefix_kl([part[side] for part in parts]) for side in ("student", "teacher")]
    if not len(sides[0].kl_BR):
        return None
    curve, (low, high) = exposure_curve(*sides), exposure_interval(*sides)
    return asdict(curve) | {"low": low, "high": high, "first_token": curve.first_token}


def _prefix_kl(parts: list[dict]) -> PrefixKL:
    rows = [torch.tensor(row, dtype=torch.float64) for part in parts for row in part["kl"]]
    kl_BR = pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, dtype=torch.float64)
    lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.long)
    prompt_B = torch.tensor([number for part in parts for number in part["prompt"]], dtype=torch.long)
    return PrefixKL(kl_BR, torch.arange(kl_BR.shape[1]) < lengths_B[:, None], prompt_B)


def _calibration(made: dict, words: Sequence[str]) -> dict:
    found = calibration_figures(torch.tensor(made["probabilities"], dtype=torch.float64), torch.tensor(made["labels"]))
    return asdict(found) | {"dropped": made["dropped"], "words": list(words)}


def _judge(suite: Suite, store: Store, counts: dict, source: str, file: str, decoding: str) -> dict:
    made = store.read(Unit("judge", source, file, decoding))
    if not made["rows"]:
        return {}
    _put(counts, decoding, file, source, value=made["counts"])
    scores: dict[int | None, list[tuple[float, float]]] = {seed: [] for seed in suite.seeds}
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for row in made["rows"]:
        if row["outcome"] == "rated":
            scores[row["seed"]].append((row["answer"], row["reference"]))
            by_prompt.setdefault(row["id"], []).append((row["answer"], row["reference"]))
    # A prompt's mean over the seeds that were rated, both scores alike.
    pairs = [tuple(map(mean, zip(*own, strict=True))) for own in by_prompt.values()]
    low, high = ratio_interval(pairs) or (None, None)
    found = ratio_over_seeds({seed_name(seed): own for seed, own in scores.items()})
    return {"judge": {"low": low, "high": high, "n": len(pairs)} | found}
