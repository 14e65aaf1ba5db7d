"""The layout of the paper's Table 1: a row for each method, a column for each test set, Rouge-L over training seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.table import Table

NAMES = {
    "teacher": "Teacher",
    "sft": "SFT w/o KD",
    "kd": "KD",
    "seqkd": "SeqKD",
    "minillm_nopt": "MiniLLM w/o L_PT",
    "minillm": "MiniLLM",
}


def table_of(results: dict, methods: list[str], seeds: list[int]) -> dict:
    """From evaluate.py's metrics.json to method -> seed -> test set -> figure (mean over the seeds of sampling), of the
    first decoding. The students are <method>-<seed>/student."""
    by_test = {Path(file).stem: by_model for file, by_model in next(iter(results["answers"].values())).items()}
    students = {Path(source).parent.name: source for source in results["models"] if source != results["teacher"]}

    def means(source: str) -> dict[str, dict[str, float]]:
        return {
            test: {name: each["mean"] for name, each in by_model[source]["figures"].items()}
            for test, by_model in by_test.items()
        }

    table = {method: {str(seed): means(students[f"{method}-{seed}"]) for seed in seeds} for method in methods}
    return {"methods": {"teacher": {"-": means(results["teacher"])}} | table, "tests": list(by_test)}


def show_table(table: dict) -> None:
    """Mean Rouge-L over training seeds with its deviation, and the mean of all test sets."""
    tests = table["tests"]
    out = Table(title="Rouge-L, mean and deviation over training seeds", title_justify="left", box=SIMPLE_HEAD)
    out.add_column("method")
    for name in (*tests, "mean"):
        out.add_column(name.removeprefix("test_"), justify="right")
    for method, seeds in table["methods"].items():
        columns = [[run[test]["rouge_l"] for run in seeds.values()] for test in tests]
        columns.append([mean(values) for values in zip(*columns, strict=True)])
        out.add_row(NAMES[method], *map(_cell, columns))
    get_console().print(out)


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
