"""python -m benchmarks.step: one MiniLLM step against TRL 1.14.2's MiniLLMTrainer. About 4 minutes on 2 cores."""

from benchmarks.common import DEVICE, in_new_process, median, report, row
from benchmarks.ours import train
from benchmarks.peers.environment import run

PROMPTS, TOKENS, STEPS, WARM_UP = 8, 64, 7, 2


def main() -> None:
    mine: dict[str, list[float]] = {"1 epoch": [], "4 epochs": []}
    theirs: dict[str, list[float]] = {"step": [], "generation": []}
    for _ in range(2):  # in turn, so that a slow minute of the machine hits both
        for name, epochs in (("1 epoch", 1), ("4 epochs", 4)):
            settings = dict(n=PROMPTS, tokens=TOKENS, rounds=STEPS, inner_epochs=epochs)
            mine[name] += in_new_process(train, settings)["rounds"][WARM_UP:]
        peer = run("1.14.2", "trl_step", "minillm", *map(str, (PROMPTS, TOKENS, STEPS, 0)))
        theirs["step"] += peer["steps"][WARM_UP:]
        theirs["generation"] += peer["generation"][WARM_UP:]
    step, generation = median(theirs["step"]), median(theirs["generation"])
    four = 4 * step - 3 * generation  # what four epochs over one generation would take
    one, epochs = median(mine["1 epoch"]), median(mine["4 epochs"])
    rows = [
        row("one step, 1 inner epoch", one, step, "s", step / one, 2.5),
        row("one step, 4 inner epochs", epochs, four, "s", four / epochs, 3),
    ]
    figures = {"ours": mine, "TRL 1.14.2": theirs, "TRL step": step, "TRL generation": generation, "device": DEVICE}
    report("step", f"TRL 1.14.2: step {step:.2f} s, of that generation {generation:.2f} s", rows, figures)


if __name__ == "__main__":
    main()
