"""What the paper reports (arXiv 2306.08543 v6, Table 1): Rouge-L at temperature 1, mean of 5 seeds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from minillm.evaluation.report.source import Model

# The paper's test sets, and what a file name of each has in it.
SETS = {
    "Dolly": r"dolly",
    "SelfInst": r"self_?inst",
    "Vicuna": r"vicuna",
    "S-NI": r"(?<![a-z])(s-?ni|sinst)(?![a-z])",
    "UnNI": r"(?<![a-z])(unni|uinst)(?![a-z])|unnatural",
}
_METHODS = {"teacher": "Teacher", "sft": "SFT", "kd": "KD", "seqkd": "SeqKD", "minillm": "MiniLLM"}
# Words of a label that say that something of the method was left out or done otherwise: the paper has no row for it.
_OTHERWISE = {"nopt", "no", "without", "wo", "ablation", "lora"}
# transformers' model type and number of parameters, in millions
_NETWORKS = {
    ("GPT-2", "120M"): ("gpt2", 124.4),
    ("GPT-2", "760M"): ("gpt2", 774.0),
    ("GPT-2", "1.5B"): ("gpt2", 1557.6),
    ("OPT", "1.3B"): ("opt", 1315.8),
    ("OPT", "13B"): ("opt", 12853.5),
    ("LLaMA", "7B"): ("llama", 6738.4),
    ("LLaMA", "13B"): ("llama", 13015.9),
}


@dataclass(frozen=True)
class Row:
    """`values` in the order of SETS."""

    family: str
    size: str
    method: str
    values: tuple[float, ...]


ROWS = (
    Row("GPT-2", "1.5B", "Teacher", (27.6, 14.3, 16.3, 27.6, 31.8)),
    Row("GPT-2", "120M", "SFT", (23.3, 10.0, 14.7, 16.3, 18.5)),
    Row("GPT-2", "120M", "KD", (22.8, 10.8, 13.4, 19.7, 22.0)),
    Row("GPT-2", "120M", "SeqKD", (22.7, 10.1, 14.3, 16.4, 18.8)),
    Row("GPT-2", "120M", "MiniLLM", (24.6, 13.2, 16.9, 25.3, 26.6)),
    Row("GPT-2", "760M", "SFT", (25.4, 12.4, 16.1, 21.5, 27.1)),
    Row("GPT-2", "760M", "MiniLLM", (26.4, 15.9, 18.3, 29.3, 37.7)),
    Row("OPT", "13B", "Teacher", (29.2, 18.4, 17.8, 30.4, 36.1)),
    Row("OPT", "1.3B", "SFT", (26.0, 11.4, 15.6, 23.1, 28.4)),
    Row("OPT", "1.3B", "MiniLLM", (26.7, 14.8, 17.9, 28.6, 33.4)),
    Row("LLaMA", "13B", "Teacher", (29.7, 23.4, 19.4, 35.8, 38.5)),
    Row("LLaMA", "7B", "SFT", (26.3, 20.8, 17.5, 32.4, 35.8)),
    Row("LLaMA", "7B", "MiniLLM", (29.0, 23.2, 20.7, 35.5, 40.2)),
)


def set_of(file: str) -> str | None:
    """The paper's test set that a data file's name speaks of, or None."""
    name = Path(file).stem.lower()
    return next((each for each, pattern in SETS.items() if re.search(pattern, name)), None)


def row_of(model: Model) -> Row | None:
    """The paper's row for a network of the same type and size (1%), made by the method that the label names; None for
    an ablation of it, such as minillm_nopt."""
    config = Path(model.source).expanduser() / "config.json"
    if not config.is_file() or not model.parameters:
        return None
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError):  # the report is of what was measured; this only compares
        return None
    words = re.split(r"[^a-z0-9]+", model.label.lower())
    method = (
        "teacher" if model.role == "teacher" else next((word for word in reversed(words) if word in _METHODS), None)
    )
    if model.role != "teacher" and _OTHERWISE.intersection(words):
        return None
    for row in ROWS:
        network, millions = _NETWORKS[row.family, row.size]
        close = abs(model.parameters / 1e6 / millions - 1) < 0.01
        if network == kind and close and method and row.method == _METHODS[method]:
            return row
    return None
