"""python -m benchmarks.objectives: which objective, on equal terms? About 45 minutes on 2 cores; a second call goes on.

The task and the models are those of `make reproduce` in a smaller size. All methods begin from one student, a short
fine-tuning, and make updates with the same number of answers' tokens (inner epochs counted). Each has three learning
rates on one seed, and the next one as long as the best by validation Rouge-L is at an end, and then 8 seeds. Tests: 95%
intervals by a bootstrap over seeds and prompts, the same draws for all methods.
"""

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, in_new_process, machine, matrix_peak
from benchmarks.narrow import (
    FIRST,
    METHODS,
    RATES,
    finished,
    make_start,
    make_teacher,
    make_teacher_answers,
    run_one,
)
from examples.narrow import write as write_task

CHOOSING_SEED, SEEDS = 100, range(8)
DRAWS, BASE = 4000, "sft"
FIGURES = ("rouge_l_in", "rouge_l_out", "reverse_kl", "forward_kl", "distinct_4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/objectives", type=Path, help="keeps models and finished runs")
    parser.add_argument("--tokens", default=100_000, type=int, help="of answers in the updates of a run")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of the methods, with commas")
    options = parser.parse_args()
    methods, folder = options.methods.split(","), options.folder
    if not {BASE} <= set(methods) <= set(METHODS):
        parser.error(f"methods: wanted {BASE} and some of {', '.join(METHODS)}")
    work = partial(run_one, folder, options.tokens)
    if not (folder / "tokenizer").exists():
        write_task(folder)
    peak = in_new_process(matrix_peak)["peak"]
    # Models so small gain little from a second thread.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_quiet, initargs=(folder,)) as pool:
        for make in (make_teacher, make_start, make_teacher_answers):
            pool.submit(make, folder).result()
        chosen = _chosen_rates(pool, work, methods)
        runs = [(name, chosen[name], seed) for seed in SEEDS for name in methods]
        _all(pool, work, runs, "seeds")
        pool.submit(run_one, folder, 0, ("start", 0.0, 0)).result()
    _report(folder, methods, chosen, options.tokens, peak)


def _quiet(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    sys.stdout = open(folder / "logs" / f"{os.getpid()}.log", "w", buffering=1)  # noqa: SIM115


def _all(pool: ProcessPoolExecutor, work: partial, runs: list[tuple], title: str) -> None:
    waiting = [run for run in runs if finished(work.args[0], run) is None]
    print(f"{title}: {len(runs)} runs, {len(runs) - len(waiting)} there", flush=True)
    for number, done in enumerate(pool.map(work, waiting), start=1):
        print(f"  {number}/{len(waiting)} {done}", flush=True)


def _chosen_rates(pool: ProcessPoolExecutor, work: partial, methods: list[str]) -> dict[str, float]:
    """The learning rate of each method with the best validation Rouge-L, which falls on both sides of it."""
    wider, tried = dict.fromkeys(methods, FIRST), {}
    while wider != tried:
        tried = wider
        runs = {name: [(name, RATES[at], CHOOSING_SEED) for at in range(*tried[name])] for name in methods}
        _all(pool, work, [run for each in runs.values() for run in each], "learning rates")
        best = {name: max(runs[name], key=lambda run: finished(work.args[0], run)["validation_rouge_l"])[1]
                for name in methods}  # fmt: skip
        wider = {
            name: (max(0, low - (best[name] == RATES[low])), min(len(RATES), high + (best[name] == RATES[high - 1])))
            for name, (low, high) in tried.items()
        }
    return best


def _report(folder: Path, methods: list[str], chosen: dict[str, float], tokens: int, peak: float) -> None:
    names = ["start", *methods]
    runs = {name: [finished(folder, (name, chosen[name], seed)) for seed in SEEDS] for name in methods}
    runs["start"] = [finished(folder, ("start", 0.0, 0))] * len(SEEDS)
    table = {}
    rng = np.random.default_rng(0)
    for figure in FIGURES:
        # [methods, seeds, prompts] of sums and weights, whose ratio is the figure
        sums, weights = (
            np.array([[run[figure][part] for run in runs[name]] for name in names], dtype=float) for part in (0, 1)
        )
        (n_seeds, n_prompts), drawn = sums.shape[1:], np.empty((DRAWS, len(names)))
        for draw in drawn:
            seeds, prompts = (rng.integers(n, size=n) for n in (n_seeds, n_prompts))
            some = np.ix_(range(len(names)), seeds, prompts)
            draw[:] = sums[some].sum((1, 2)) / weights[some].sum((1, 2))
        means = sums.sum((1, 2)) / weights.sum((1, 2))
        beyond = drawn - drawn[:, [names.index(BASE)]]
        for row, name in enumerate(names):
            low, high = np.quantile(drawn[:, row], (0.025, 0.975))
            less, more = np.quantile(beyond[:, row], (0.025, 0.975))
            table.setdefault(name, {})[figure] = {
                "mean": means[row], "interval": [low, high], f"minus_{BASE}": [less, more],
            }  # fmt: skip
    for name in methods:
        table[name] |= {
            "learning_rate": chosen[name],
            "tokens": float(np.mean([run["tokens"] for run in runs[name]])),
        }
    print(f"{'':14}" + "".join(f"{figure:>24}" for figure in FIGURES) + "      rate  tokens")
    for name in names:
        cells = (table[name][figure] for figure in FIGURES)
        text = "".join("{:10.3f} [{:.3f}, {:.3f}]".format(cell["mean"], *cell["interval"]).rjust(24) for cell in cells)
        print(f"{name:14}{text}  {table[name].get('learning_rate', 0):8.0e} {table[name].get('tokens', 0):7.0f}")
    RESULTS.mkdir(exist_ok=True)
    out = {"tokens": tokens, "FLOP/s": peak, "machine": machine(), "methods": table}
    (RESULTS / "objectives.json").write_text(json.dumps(out, indent=2) + "\n")
    _draw(table, names, Path("docs/objectives.png"))


def _draw(table: dict, names: list[str], file: Path) -> None:
    from matplotlib.figure import Figure

    shown = {"rouge_l_in": "Rouge-L, lists and descriptions", "rouge_l_out": "Rouge-L, longer lists",
             "reverse_kl": "reverse KL, nats a token"}  # fmt: skip
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True)
    for axis, (key, title) in zip(axes, shown.items(), strict=True):
        for row, name in enumerate(reversed(names)):
            cell = table[name][key]
            axis.plot(cell["interval"], [row, row], color="tab:gray" if name == "start" else "tab:blue", linewidth=2)
            axis.plot(cell["mean"], row, "o", color="tab:gray" if name == "start" else "tab:blue")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), reversed(names))
    figure.savefig(file, dpi=110)
    print(f"Wrote {RESULTS / 'objectives.json'} and {file}")


if __name__ == "__main__":
    main()
