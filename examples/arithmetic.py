"""Sums and differences as prompts, and exact match as a reward (docs/rewards.md).

python -m examples.arithmetic                                writes train.jsonl and val.jsonl into data/arithmetic
python train.py reward.function=examples.arithmetic.exact sampler.answers_per_prompt=4 ...
"""

import argparse
import json
import random
from pathlib import Path

from minillm.data import Record


def rows(n: int, largest: int, seed: int) -> list[dict]:
    """So many different problems, with their answers."""
    problems = [(a, sign, b) for a in range(largest + 1) for b in range(largest + 1) for sign in "+-" if a >= b]
    chosen = random.Random(seed).sample(problems, n)
    return [
        {"instruction": f"{a} {sign} {b} =", "output": str(a + b if sign == "+" else a - b)} for a, sign, b in chosen
    ]


def exact(record: Record, answer: str) -> float:
    """1 where the answer is the number and nothing else."""
    return float(answer.strip() == record.references[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="data/arithmetic")
    parser.add_argument("--n", type=int, default=1000, help="problems; a tenth is for validation")
    parser.add_argument("--largest", type=int, default=99, help="number in a problem")
    options = parser.parse_args()
    made, folder = rows(options.n, options.largest, seed=0), Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("val", made[: options.n // 10]), ("train", made[options.n // 10 :])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


if __name__ == "__main__":
    main()
