"""python -m benchmarks.memory: memory of a step above the loaded models against TRL's trainers. About 10 minutes.

TRL as it is by default, all rows at once and with gradient checkpointing; and with two rows at a time, about as many
tokens as go through our models at once in the lean setting.
"""

from benchmarks.common import in_new_process, report, row
from benchmarks.ours import train
from benchmarks.peers.environment import run

PROMPTS, TOKENS, STEPS = 16, 256, 3
PEERS = (
    ("1.14.2", "minillm", 16),
    ("1.16.0", "distillation", 16),
    ("1.14.2", "distillation", 16),
    ("1.14.2", "minillm", 2),
)
LEAN = {"regime": {"microbatch_tokens": 512}, "linear_loss": {"chunk_mb": 16.0}}


def main() -> None:
    base = dict(n=PROMPTS, tokens=TOKENS, rounds=STEPS, inner_epochs=1)
    figures: dict[str, dict] = {
        "ours, default": in_new_process(train, base),
        "ours, lean": in_new_process(train, base | LEAN),
    }
    for version, trainer, at_a_time in PEERS:
        name = f"TRL {version} {trainer}, {at_a_time} rows at a time"
        arguments = map(str, (PROMPTS, TOKENS, STEPS, 1, PROMPTS // at_a_time))
        figures[name] = run(version, "trl_step", trainer, "student", "teacher", *arguments)
    gb = {name: each["memory_gb"] for name, each in figures.items()}
    rows = [
        row(f"{one} : {peer}", gb[one], gb[peer], "GB", gb[one] / gb[peer], 0.25, at_most=True)
        for one in gb
        if one.startswith("ours")
        for peer in gb
        if peer.startswith("TRL")
    ]
    report("memory", "TRL, 16 prompts x 256 tokens", rows, figures)


if __name__ == "__main__":
    main()
