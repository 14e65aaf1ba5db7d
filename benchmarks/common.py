"""What all benchmarks share: fresh processes, medians, the table on the terminal and the file of results."""

import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP, REPETITIONS = 2, 5


def in_new_process(function: Callable, *args) -> dict:
    """The function's result from a fresh interpreter: no benchmark sees the memory or the caches of another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def seconds(function: Callable, repetitions: int = REPETITIONS) -> list[float]:
    """Of each call, after warm-up."""
    out = []
    for _ in range(WARM_UP + repetitions):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        out.append(time.perf_counter() - began)
    return out[WARM_UP:]


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median(values: list[float]) -> float:
    return statistics.median(values)


def row(what: str, ours: float, peer: float, unit: str, ratio: float, aim: float, at_most: bool = False) -> dict:
    """One line of the table: two figures, their ratio, and whether it reaches the aim."""
    met = ratio <= aim if at_most else ratio >= aim
    aim_text = f"{'at most' if at_most else 'at least'} {aim:g}"
    return {"what": what, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "aim": aim_text, "met": met}


def report(name: str, peer: str, rows: list[dict], figures: dict) -> None:
    """Print the table; write benchmarks/results/<name>.json with every measured figure."""
    table = Table(title=f"{name} (median; against {peer})")
    for column in ("what", "ours", "peer", "unit", "ratio", "aim", "met"):
        table.add_column(column, justify="left" if column in ("what", "unit", "aim", "met") else "right")
    for each in rows:
        table.add_row(
            each["what"],
            f"{each['ours']:.3g}",
            f"{each['peer']:.3g}",
            each["unit"],
            f"{each['ratio']:.2f}",
            each["aim"],
            "yes" if each["met"] else "NO",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}{'' if DEVICE == 'cpu' else '_' + DEVICE}.json"
    out = {"name": name, "date": datetime.date.today().isoformat(), "machine": machine(), "rows": rows}
    file.write_text(json.dumps(out | {"figures": figures}, indent=2) + "\n")
    print(f"Wrote benchmarks/results/{file.name}")


def machine() -> dict:
    packages = ("torch", "transformers", "lightning", "numpy")
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"{cpu or platform.processor()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def matrix_peak() -> dict[str, float]:
    """FLOP/s of square float32 products, and the larger of the two (`peak`)."""
    out = {}
    for size in (2048, 4096):
        left, right = (torch.randn(size, size, device=DEVICE) for _ in range(2))
        out[str(size)] = 2 * size**3 / median(seconds(lambda left=left, right=right: left @ right))
    return out | {"peak": max(out.values())}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
