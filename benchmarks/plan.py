"""python -m benchmarks.plan: memory that the planner tells against the allocator's peak. About 5 minutes on 2 cores.

Whole MiniLLM rounds (rollout with the teacher's mixture, update) in Lightning's trainer as train.py runs them, above
the loaded models; the plan is made of the architectures alone.
"""

from benchmarks.common import in_new_process, report, row
from benchmarks.ours import PROMPT, train
from minillm.models import Architecture

SHAPES = {
    "llama 15.6 M from 50 M": (
        Architecture("llama", 4, 256, 4, 4, 640, 49_152, tied=True),
        Architecture("llama", 8, 512, 8, 8, 1344, 49_152, tied=True),
    ),
    "gpt2 45 M from 72 M": (
        Architecture("gpt2", 6, 512, 8, 8, 2048, 50_257, tied=True),
        Architecture("gpt2", 8, 640, 10, 10, 2560, 50_257, tied=True),
    ),
}
RUNS = ((8, 256, 2048), (16, 256, 4096))  # rows, tokens of an answer, regime.microbatch_tokens


def real(shapes: tuple[Architecture, Architecture], rows: int, tokens: int, budget: int) -> dict:
    settings = dict(n=rows, tokens=tokens, rounds=2, inner_epochs=1, alpha=0.2, shapes=shapes, profiled=True)
    return train(settings | {"regime": {"microbatch_tokens": budget}})


def planned(shapes: tuple[Architecture, Architecture], rows: int, tokens: int, budget: int) -> dict:
    import torch

    from minillm.planning import Case, Sizes, measure

    student, teacher = (
        Sizes.planned(shape.config(), torch.float32, "sdpa", trained=trained)
        for shape, trained in zip(shapes, (True, False), strict=True)
    )
    case = Case(student, teacher, prompt=PROMPT, answer=tokens, minibatch=rows, microbatch_tokens=budget, rollouts=rows,
                decoded=rows)  # fmt: skip
    memory = measure(case)
    models = ("student", "teacher")
    above = {
        name: sum(size for purpose, size in phase.items() if purpose not in models)
        for name, phase in (("rollout", memory.rollout), ("update", memory.update))
    }
    return {"memory_gb": max(above.values()), "phases": above, "update": memory.update, "rollout": memory.rollout}


def main() -> None:
    figures, rows = {}, []
    for name, shapes in SHAPES.items():
        for n, tokens, budget in RUNS:
            what = f"{name}, {n} x {tokens}, {budget} at a time"
            sides = {"planned": in_new_process(planned, shapes, n, tokens, budget)}
            sides["allocated"] = in_new_process(real, shapes, n, tokens, budget)
            figures[what] = sides
            plan, there = (each["memory_gb"] for each in sides.values())
            off = abs(plan / there - 1)
            rows.append(row(what, plan, there, "GB", 1 + off, 1.15, at_most=True))
    report("plan", "the allocator's peak; ratio: 1 + distance", rows, figures)


if __name__ == "__main__":
    main()
