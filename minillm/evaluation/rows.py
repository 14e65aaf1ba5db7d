"""The figures of metrics.json as rows: what the screen, table.csv and the page show of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

# Counts of a judge, by their names in metrics.json.
JUDGED = {
    "items": "answers", "rated": "rated", "malformed": "malformed", "failed": "failed",
    "malformed_replies": "replies without scores",
}  # fmt: skip
_VALUES = ("mean", "deviation", "low", "high", "n")
_BY_FILE = ("reference_loss", "position", "exposure")


def files_of(metrics: Mapping[str, Any]) -> list[str]:
    """All data files with a figure."""
    parts = [*metrics["answers"].values(), *(metrics.get(key, {}) for key in _BY_FILE)]
    return list(dict.fromkeys(name for part in parts for name in part))


def cells(metrics: Mapping[str, Any], decoding: str, file: str, source: str) -> dict[str, dict]:
    """{mean, deviation, low, high, n} by figure; those by length of the reference as `rouge_l@0-5`. The loss on
    references is the same in every decoding."""
    entry = metrics["answers"][decoding].get(file, {}).get(source, {"figures": {}})
    loss = metrics.get("reference_loss", {}).get(file, {}).get(source)
    found = entry["figures"] | ({"reference_loss": loss} if loss else {})
    for name, figures in entry.get("by_length", {}).items():
        found |= {f"{key}@{name}": cell for key, cell in figures.items()}
    return {key: {name: cell[name] for name in _VALUES} for key, cell in found.items()}


def last_excess(exposure: Mapping[str, Any]) -> dict[str, Any] | None:
    """ExAccErr at the last length that has a value: length, mean, low, high; None where no length has one."""
    columns = zip(*(exposure[name] for name in ("excess", "low", "high")), strict=False)  # of a file from elsewhere
    found = [(length, *values) for length, values in enumerate(columns, start=1) if values[0] is not None]
    return dict(zip(("length", "mean", "low", "high"), found[-1], strict=True)) if found else None


def figure_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure: decoding, model (its label), source, file, figure, mean, deviation, low, high and n, as
    far as it has them. What has no decoding (calibration, exposure bias) has none; `file` is the task of a calibration;
    the length of `exposure_bias@35` is the last one with a value."""
    rows: list[dict[str, Any]] = []
    models = {source: {"model": each["label"], "source": source} for source, each in metrics["models"].items()}
    for decoding, (source, names), file in product(metrics["answers"], models.items(), files_of(metrics)):
        place = {"decoding": decoding} | names | {"file": file}
        rows += [place | {"figure": key} | cell for key, cell in cells(metrics, decoding, file, source).items()]
        counts = metrics.get("judge", {}).get(decoding, {}).get(file, {}).get(source, {})
        judged = [name for name in JUDGED if name in counts]
        rows += [place | {"figure": f"judge_{name}", "mean": counts[name], "n": counts.get("items")} for name in judged]
    for task, (source, names) in product(metrics.get("calibration", {}), models.items()):
        entry = metrics["calibration"][task].get(source)
        for figure in ("ece", "accuracy") if entry else ():
            low, high = entry.get(f"{figure}_interval") or (None, None)
            cell = {"mean": entry[figure], "low": low, "high": high, "n": entry.get("n")}
            rows.append(names | {"file": task, "figure": figure} | cell)
        if entry and entry.get("dropped") is not None:
            rows.append(names | {"file": task, "figure": "dropped", "mean": entry["dropped"], "n": entry.get("n")})
    for file, (source, names) in product(metrics.get("exposure", {}), models.items()):
        entry = metrics["exposure"][file].get(source, {"excess": [], "low": [], "high": []})
        if last := last_excess(entry):
            rows.append(names | {"file": file, "figure": f"exposure_bias@{last.pop('length')}"} | last)
        if entry.get("first_token") is not None:
            rows.append(names | {"file": file, "figure": "first_token_kl", "mean": entry["first_token"]})
    return rows
