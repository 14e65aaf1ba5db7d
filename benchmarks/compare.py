"""python -m benchmarks.compare: seconds of `minillm.compare` over 500 and 2,000 made-up runs. 1 minute on 2 cores.

Each has the config.yaml of recipe=minillm pair=gpt2_120m with its own seed, learning rate and discount, a metrics.csv
of 100 rows and 28 columns, and a metrics.json. Rates of two machines compare by the product rate.
"""

import contextlib
import io
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.common import in_new_process, machine, matrix_peak

SIZES, ROWS, EVERY = (500, 2000), 100, 4  # runs; rows of a metrics.csv; of which one has been validated


def write_runs(folder: Path, n_runs: int) -> None:
    from minillm.common.overrides import compose_in_conf
    from minillm.common.stored import resolved, write_config

    plain = resolved(compose_in_conf("train", ["recipe=minillm", "pair=gpt2_120m", "run.name=x", "run.dir=runs/x"]))
    others = [f"train/figure_{number}" for number in range(25)]
    columns = ["progress/optimizer_step", "val/reverse_kl", "val/rouge_l", *others]
    for number in range(n_runs):
        run = folder / f"trial-{number}"
        run.mkdir()
        rates = plain["optim"] | {"learning_rate": 1e-6 * (1 + number // 5 % 20)}
        objective = plain["objective"] | {"gamma": (1.0, 0.99, 0.9)[number % 3]}
        write_config(run / "config.yaml", plain | {"seed": number % 5, "optim": rates, "objective": objective})
        value = 1 + number % 7
        lines = [",".join(columns)]
        for step in range(ROWS):
            validated = [value / (1 + step), 3.5] if step % EVERY == 0 else ["", ""]
            lines.append(",".join(map(str, [step, *validated, *[0.123456] * len(others)])))
        (run / "metrics.csv").write_text("\n".join(lines) + "\n")
        (run / "metrics.json").write_text(json.dumps({"val/reverse_kl": value, "val/rouge_l": 3.5}))


def compared(folder: str) -> dict:
    from minillm.compare import compare

    began, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        compare(Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used, "peak": peak}


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1"}
    print(f"machine: {machine()['device']}, {len(os.sched_getaffinity(0))} cores usable")
    print(f"product rate: {in_new_process(matrix_peak)['peak'] / 1e9:.0f} GFLOP/s, float32, one thread")
    for n_runs in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_runs(Path(folder), n_runs)
            found = in_new_process(compared, folder)
        print(f"{n_runs} runs: {found['seconds']:.1f} s (CPU {found['cpu']:.1f} s), peak {found['peak']:.0f} MB")


if __name__ == "__main__":
    main()
