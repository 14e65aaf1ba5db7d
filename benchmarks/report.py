"""python -m benchmarks.report: CPU time of a report of 1,000, 3,000 and 10,000 answers. 3 minutes on 2 cores.

Three models, three files and two decodings, 55 prompts of each file, and 1, 3 or 10 seeds: the plots are the same, and
the page shows all answers but for 9,000 of the last 9,900. Each answer should cost the same however many there are.
Seconds are CPU time of the one process, which other work on the machine disturbs less; `wall` is in the results.
"""

import itertools
import tempfile
import time
from pathlib import Path

from benchmarks.common import in_new_process, matrix_peak, median, report, row

PROMPTS = 55
SEEDS, REPETITIONS = (1, 3, 10), 3


def measure(n_seeds: int) -> dict:
    from minillm.evaluation.report import read_folder, write_report
    from minillm.evaluation.report.write import samples_of
    from tests.evaluation_files import write_evaluation

    out = {"whole": [], "wall": [], "answers": []}
    with tempfile.TemporaryDirectory() as place:
        folder = write_evaluation(Path(place) / "run", prompts=PROMPTS, seeds=list(range(n_seeds)))
        for _ in range(1 + REPETITIONS):
            wall, cpu = time.perf_counter(), time.process_time()
            page = write_report(folder)
            out["whole"].append(time.process_time() - cpu)
            out["wall"].append(time.perf_counter() - wall)
            cpu = time.process_time()
            source = read_folder(folder)
            samples_of(source)
            out["answers"].append(time.process_time() - cpu)
        n, size = source.n_answers, page.stat().st_size / 1e6
    return {name: times[1:] for name, times in out.items()} | {"n": n, "page_mb": size}


def main() -> None:
    peak = in_new_process(matrix_peak)["peak"] / 1e9
    sides = {n_seeds: in_new_process(measure, n_seeds) for n_seeds in SEEDS}
    rows = []
    for before, after in itertools.pairwise(SEEDS):
        for part in ("whole", "answers"):
            few, many = (median(sides[n_seeds][part]) for n_seeds in (before, after))
            what = f"{part}: {sides[after]['n']:,} : {sides[before]['n']:,} answers"
            rows.append(row(what, many, few, "s", many / few, after / before, at_most=True))
    report("report", f"fewer answers; square products {peak:.0f} GFLOP/s", rows, {"sides": sides, "peak_gflops": peak})


if __name__ == "__main__":
    main()
