"""python -m benchmarks.opd: a step of on-policy distillation against TRL 1.16's DistillationTrainer at the same loss.

Both minimise the full-vocabulary reverse KL on the student's own answers, one optimizer step on each rollout. About 12
minutes on 2 cores.
"""

from benchmarks.common import in_new_process, matrix_peak, median, report, row
from benchmarks.ours import train
from benchmarks.peers.environment import run

PROMPTS, TOKENS, STEPS, WARM_UP = 8, 64, 7, 2
MODELS = {"15.6 M from 50 M": ("student", "teacher"), "SmolLM2": ("SmolLM2-135M, 26 layers", "SmolLM2-135M")}


def main() -> None:
    from minillm.objectives import ReverseKL

    figures, rows = {"FLOP/s": in_new_process(matrix_peak)}, []
    for size, models in MODELS.items():
        settings = dict(n=PROMPTS, tokens=TOKENS, rounds=STEPS, inner_epochs=1, models=models, objective=ReverseKL())
        ours = figures[f"ours, {size}"] = in_new_process(train, settings)
        for allocator in ("", " (our allocator settings)"):
            arguments = (*models, *map(str, (PROMPTS, TOKENS, STEPS, 0, 1)))
            keep = dict(keep_freed_memory=bool(allocator))
            peer = figures[f"TRL, {size}{allocator}"] = run("1.16.0", "trl_step", "distillation", *arguments, **keep)
            mine, theirs = median(ours["rounds"][WARM_UP:]), median(peer["steps"][WARM_UP:])
            rows.append(row(f"step : {size}{allocator}", mine, theirs, "s", mine / theirs, 0.5, at_most=True))
            if not allocator:
                gb = ours["memory_gb"], peer["memory_gb"]
                rows.append(row(f"memory above the models : {size}", *gb, "GB", gb[0] / gb[1], 0.25, at_most=True))
                first = ours["losses"][0], peer["losses"][0]
                rows.append(row(f"loss of the first step : {size}", *first, "nats", first[0] / first[1], 1.1, True))
    report("opd", "TRL 1.16.0 DistillationTrainer", rows, figures)


if __name__ == "__main__":
    main()
