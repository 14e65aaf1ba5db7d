"""python -m benchmarks.step: one MiniLLM step against TRL 1.14.2's MiniLLMTrainer. About 3 minutes on 2 cores."""

from benchmarks.common import DEVICE, in_new_process, median, report, row
from benchmarks.ours import train
from benchmarks.peers.environment import run

PROMPTS, TOKENS, STEPS, WARM_UP = 8, 64, 7, 2


def main() -> None:
    mine, theirs = {}, {}
    for name, epochs in (("1 epoch", 1), ("4 epochs", 4)):
        settings = dict(n=PROMPTS, tokens=TOKENS, rounds=STEPS, inner_epochs=epochs)
        mine[name] = in_new_process(train, settings)["rounds"][WARM_UP:]
    for allocator in ("", " (our allocator settings)"):
        arguments = map(str, (PROMPTS, TOKENS, STEPS, 0, 1))
        peer = run("1.14.2", "trl_step", "minillm", "student", "teacher", *arguments, keep_freed_memory=bool(allocator))
        for name, key in (("step", "steps"), ("generation", "generation")):
            theirs[name + allocator] = peer[key][WARM_UP:]
    one, epochs = median(mine["1 epoch"]), median(mine["4 epochs"])
    rows = []
    for allocator in ("", " (our allocator settings)"):
        step, generation = median(theirs["step" + allocator]), median(theirs["generation" + allocator])
        four = 4 * step - 3 * generation  # what four epochs over one generation would take; computed, not measured
        rows.append(row(f"1 inner epoch : TRL{allocator}", one, step, "s", step / one, 2.5))
        rows.append(row(f"4 inner epochs : 4 TRL less 3 generations{allocator}", epochs, four, "s", four / epochs, 3))
    step, generation = median(theirs["step"]), median(theirs["generation"])
    figures = {"ours": mine, "TRL 1.14.2": theirs, "TRL step": step, "TRL generation": generation, "device": DEVICE}
    report("step", f"TRL 1.14.2: step {step:.2f} s, of that generation {generation:.2f} s", rows, figures)


if __name__ == "__main__":
    main()
