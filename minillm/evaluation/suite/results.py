"""From finished units to metrics.json, answers.jsonl and tokens.jsonl: figures, their spread, and the ids they rest on.

Axes: S seeds, N prompts, B samples, R positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence

from minillm.common.console import say
from minillm.common.errors import ConfigError
from minillm.common.labels import labels, seed_name
from minillm.common.read import read_settings
from minillm.data import Record
from minillm.evaluation.answers import figure_values
from minillm.evaluation.judge.verdict import Item, Ratings, score_over_seeds
from minillm.evaluation.metrics import (
    FIGURES,
    Figure,
    PositionMeans,
    PrefixKL,
    by_length,
    calibration_figures,
    exposure_curve,
    over_seeds,
    pooled,
)
from minillm.evaluation.suite.units import Store, Unit, chunks

Rows = dict[int | None, list[dict]]  # of each seed, in the order of the records
NOTHING = {"mean": None, "deviation": None, "low": None, "high": None, "n": 0, "per_seed": {}}


def names_of(models: Sequence[str]) -> dict[str, str]:
    """As `labels`, but RUN/student of a training run is named for its weights: RUN/best or RUN/last."""
    named = {source: source for source in models}
    for source in models:
        with suppress(ConfigError):  # config.yaml is damaged: only the name is lost
            kept = (read_settings(Path(source).expanduser().parent) or {}).get("callbacks.record.export")
            if kept in ("best", "last") and Path(source).name == "student":
                named[source] = str(Path(source).with_name(kept))
    unique = len({*named.values()}) == len(named)
    return dict(zip(models, labels([*named.values()]).values(), strict=True)) if unique else labels(models)


def results_of(store: Store) -> dict:
    """What metrics.json holds. A judge is asked here: its replies are kept in a place of their own.

    Raises:
        DataError: a unit is missing or damaged. JudgeError, StorageError: see `Judge.rate`.
    """
    suite, measures, names = store.suite, store.suite.measures, names_of(store.suite.models)
    students = [source for source in suite.models if suite.teacher not in (None, source)]
    first, first_file = next(iter(measures.decodings)), next(iter(suite.records))

    def by_file(make: Callable, wanted: bool = True, sources: Sequence[str] = suite.models) -> dict[str, dict]:
        """`make(store, source, file)` by file and model, without what is None."""
        found = {file: {source: make(store, source, file) for source in sources} for file in suite.records if wanted}
        found = {file: {s: each for s, each in own.items() if each is not None} for file, own in found.items()}
        return {file: own for file, own in found.items() if own}

    out: dict = {
        "suite": measures.name,
        "settings": suite.settings,
        "teacher": suite.teacher,
        "models": {
            source: {"label": names[source], "role": "teacher" if source == suite.teacher else "student"}
            | {"parameters": store.read(chunks(suite, "answers", source, first_file, first)[0])["parameters"]}
            for source in suite.models
        },
        "figures": {figure.key: figure.facts() for figure in measures.all_figures},
        "notes": [*suite.notes],
        "answers": {
            decoding: by_file(lambda *place, decoding=decoding: _answers(*place, decoding))
            for decoding in measures.decodings
        },
        "reference_loss": by_file(_reference_loss, measures.reference_loss),
        "position": by_file(_position, measures.plain is not None, students),
        "exposure": by_file(_exposure, measures.exposure is not None, students),
        "calibration": {task: {source: _calibration(store, source, task) for source in suite.models}
                        for task in suite.tasks},
    }  # fmt: skip
    if measures.judge:
        out["judge"] = {}
        for decoding, file, source in product(measures.decodings, suite.records, suite.models):
            if rated := _judged(store, source, file, decoding):
                counts, out["answers"][decoding][file][source]["figures"]["judge"] = rated
                out["judge"].setdefault(decoding, {}).setdefault(file, {})[source] = counts
    for file in suite.records:
        answered = {source: store.answers(source, file, first)[suite.seeds[0]] for source in suite.models}
        if len({tuple(row["id"] for row in rows) for rows in answered.values()}) > 1:
            counts = ", ".join(f"{names[source]} {len(rows)}" for source, rows in answered.items())
            out["notes"].append(
                f"{file}: the models answered different prompts ({counts}), because each counts its own tokens; raise "
                "data.max_prompt_tokens to compare them on the same"
            )
    return out


def answer_lines(store: Store) -> Iterator[str]:
    """The lines of answers.jsonl."""
    for where, row, record in _all_answers(store):
        shown = {name: row[name] for name in ("truncated", "reverse_kl", "rouge_l", "exact_match")}
        texts = {"prompt": record.conversation, "answer": row["answer"], "references": record.references}
        yield _line(where | texts | shown | {"n_tokens": len(row["tokens"])})


def token_lines(store: Store) -> Iterator[str]:
    """The lines of tokens.jsonl."""
    for where, row, _ in _all_answers(store):
        if "pieces" in row:
            yield _line(where | {"tokens": row["pieces"], "log_q": row["log_q"], "log_p": row["log_p"]})


def _all_answers(store: Store) -> Iterator[tuple[dict, dict, Record]]:
    suite = store.suite
    for source, (file, records), decoding in product(suite.models, suite.records.items(), suite.measures.decodings):
        by_id = {record.id: record for record in records}
        for seed, own in store.answers(source, file, decoding).items():
            where = {"model": source, "file": file, "decoding": decoding, "seed": seed}
            for row in own:
                yield where | {"id": row["id"]}, row, by_id[row["id"]]


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _spread(seeds: Mapping[int | None, tuple[Sequence[float], Sequence[float]]]) -> dict:
    """Mean, deviation and interval (see `over_seeds`) of a figure that each seed has for each prompt, as values and
    weights, with the figure of each seed."""
    found = over_seeds(*zip(*seeds.values(), strict=True))
    if not found.n:
        return dict(NOTHING)
    return asdict(found) | {
        "per_seed": {seed_name(seed): sum(values) / sum(weights) for seed, (values, weights) in seeds.items()}
    }


def answer_figures(
    rows: Rows, references: Mapping[str, Sequence[str]] | None = None, figures: Sequence[Figure] = FIGURES
) -> dict[str, dict]:
    """The figures that apply, each over prompts and seeds. `references` by the id of the row."""
    by_seed = {}
    for seed, own in rows.items():
        answers = [SimpleNamespace(**row) for row in own]
        by_seed[seed] = figure_values(answers, [(references or {}).get(row["id"], ()) for row in own], figures)
    found, (newest, *others) = {}, by_seed.values()
    for key in (key for key in newest if all(key in each for each in others)):
        values, first = {seed: each[key] for seed, each in by_seed.items()}, newest[key]
        if isinstance(first, float):
            deviation = stdev(values.values()) if len(values) > 1 else None
            found[key] = NOTHING | {"mean": mean(values.values()), "deviation": deviation, "n": len(own)}
            found[key]["per_seed"] = {seed_name(seed): value for seed, value in values.items()}
        else:
            found[key] = _spread(values)
    return found


def length_bins(rows: Rows) -> dict[str, dict]:
    """By tokens of the shortest reference; nothing where a prompt has none."""
    first = next(iter(rows.values()))
    if any(row["reference_length"] is None for row in first):
        return {}
    bins = by_length(range(len(first)), [row["reference_length"] for row in first])
    return {
        name: {
            figure: _spread({seed: ([own[at][figure] for at in members], [1] * len(members))
                             for seed, own in rows.items()})
            for figure in ("rouge_l", "exact_match")
        }
        for name, members in bins.items()
    }  # fmt: skip


def _answers(store: Store, source: str, file: str, decoding: str) -> dict:
    rows = store.answers(source, file, decoding)
    references = {record.id: record.references for record in store.suite.records[file]}
    figures = answer_figures(rows, references, store.suite.measures.all_figures)
    return {"prompts": len(rows[store.suite.seeds[0]]), "figures": figures, "by_length": length_bins(rows)}


def _reference_loss(store: Store, source: str, file: str) -> dict | None:
    made = store.read(Unit("references", source, file))
    if not made["losses"]:
        return None
    return asdict(over_seeds([made["losses"]], [made["tokens"]])) | {"per_seed": {}}


def _position(store: Store, source: str, file: str) -> dict:
    units = chunks(store.suite, "answers", source, file, store.suite.measures.plain)
    parts = [position for unit in units if (position := store.read(unit)["position"])]
    return {
        name: asdict(pooled([PositionMeans(tuple(part[name]["mean"]), tuple(part[name]["alive"])) for part in parts]))
        for name in ("reverse_kl", "forward_kl")
    }


def _exposure(store: Store, source: str, file: str) -> dict | None:
    """None where no prompt was short enough to be kept."""
    parts = [store.read(unit) for unit in chunks(store.suite, "exposure", source, file)]
    sides = [_prefix_kl([part[side] for part in parts]) for side in ("student", "teacher")]
    if not len(sides[0].kl_BR):
        return None
    curve = exposure_curve(*sides)
    return asdict(curve) | {"first_token": curve.first_token}


def _prefix_kl(parts: list[dict]) -> PrefixKL:
    rows = [torch.tensor(row, dtype=torch.float64) for part in parts for row in part["kl"]]
    kl_BR = pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, dtype=torch.float64)
    lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.long)
    prompt_B = torch.tensor([number for part in parts for number in part["prompt"]], dtype=torch.long)
    return PrefixKL(kl_BR, torch.arange(kl_BR.shape[1]) < lengths_B[:, None], prompt_B)


def _calibration(store: Store, source: str, task: str) -> dict:
    made, words = store.read(Unit("calibration", source, task)), store.suite.tasks[task][0].words
    found = calibration_figures(torch.tensor(made["probabilities"], dtype=torch.float64), torch.tensor(made["labels"]))
    return asdict(found) | {"dropped": made["dropped"], "words": list(words)}


def _judged(store: Store, source: str, file: str, decoding: str) -> tuple[dict, dict] | None:
    """Counts, and the figure; nothing where a prompt has no reference. Counts of what was paid for are said, not kept:
    they are others when the work is stopped and goes on."""
    records = {record.id: record for record in store.suite.records[file]}
    rows = [row for own in store.answers(source, file, decoding).values() for row in own]
    if not rows or not all(records[row["id"]].references for row in rows):
        return None
    asked = [(records[row["id"]], row["answer"]) for row in rows]
    items = [Item(record.id, record.conversation, record.references[0], answer) for record, answer in asked]
    ratings, unit = store.suite.measures.judge.rate(items), f"judge of {source}, {file}, {decoding}"
    counts = ratings.counts()
    say(f"{unit}: {', '.join(f'{name} {n}' for name, n in counts.items())}")
    if failure := ratings.first_failure():
        say(f"{unit}: failed with {failure}.")
    by_seed = {seed_name(seed): [] for seed in store.suite.seeds}
    for row, rating in zip(rows, ratings.items, strict=True):
        by_seed[seed_name(row["seed"])].append(rating)
    figure = score_over_seeds({seed: Ratings(tuple(own)) for seed, own in by_seed.items()})
    return {name: n for name, n in counts.items() if name not in ("asked", "from_cache")}, figure
