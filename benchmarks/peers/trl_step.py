"""Steps of a TRL trainer on the benchmark's models: seconds, of that generation, and memory above the loaded models.

python -m benchmarks.peers.trl_step minillm|distillation STUDENT TEACHER PROMPTS TOKENS STEPS CHECKPOINTING(0|1)
ACCUMULATION, in TRL's environment; the models are those of benchmarks.models.
"""

import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from benchmarks.measure import Memory
from benchmarks.models import VOCABULARY, make_model, make_prompts

PROMPT = 32


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word a token, w0 to w49151; the last one ends."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = f"w{VOCABULARY - 1}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token="w0", padding_side="left")


class Clock(TrainerCallback):
    def __init__(self):
        self.steps: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        # Generation belongs to the step but begins before it, when the batch is prepared.
        self.began = self.began if self.steps else time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        now = time.perf_counter()
        self.steps.append(now - self.began)
        self.began = now


def make_trainer(
    kind: str,
    models: tuple[str, str],
    n: int,
    tokens: int,
    steps: int,
    checkpointing: int,
    accumulation: int,
    callback: TrainerCallback,
):
    prompts = [" ".join(f"w{i}" for i in row) for row in make_prompts(n, PROMPT).tolist()]
    common = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=n // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        max_completion_length=tokens,
        gradient_checkpointing=bool(checkpointing),
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        temperature=1.0,
        top_k=0,
        learning_rate=1e-5,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": prompts * steps})
    student, teacher = make_model(models[0]), make_model(models[1]).requires_grad_(False)
    options = dict(train_dataset=data, processing_class=make_tokenizer(), callbacks=[callback])
    if kind == "minillm":
        from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

        args = MiniLLMConfig(**common, num_generations=1, gamma=1.0, beta=0.0)
        return MiniLLMTrainer(student, teacher, args=args, **options)
    from trl import DistillationConfig, DistillationTrainer

    return DistillationTrainer(student, teacher, args=DistillationConfig(**common, beta=1.0), **options)


def main(kind: str, student: str, teacher: str, *numbers: int) -> None:
    clock = Clock()
    trainer = make_trainer(kind, (student, teacher), *numbers, clock)
    generation: list[float] = []
    generate = trainer.model.generate

    def timed(*args, **kwargs):
        began = time.perf_counter()
        out = generate(*args, **kwargs)
        generation.append(time.perf_counter() - began)
        return out

    trainer.model.generate = timed
    with Memory() as memory:
        began = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - began
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    figures = {"steps": clock.steps, "generation": generation, "losses": losses, "all": whole}
    print(json.dumps(figures | {"memory_gb": memory.above_gb}))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
