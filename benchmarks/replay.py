"""python -m benchmarks.replay: decoding on a GPU by CUDA graphs, by steps, by transformers' generate. 3 minutes.

GPT-2 120M (float32) and GPT-2 1.5B (bfloat16) with random weights, under autocast to bfloat16 as a run has them.
"""

import time

import torch
from transformers import GPT2LMHeadModel

from benchmarks.common import DEVICE, in_new_process, report, row, synchronize
from benchmarks.models import make_prompts
from minillm.common.machine import tune
from minillm.common.types import PromptBatch
from minillm.models import Architecture, LanguageModel
from minillm.rollout import decode

ROWS, TOKENS, PROMPT = 64, 64, 64
SHAPES = {
    "student": (Architecture("gpt2", 12, 768, 12, 12, 3072, 50_257, tied=True), torch.float32),
    "teacher": (Architecture("gpt2", 48, 1600, 25, 25, 6400, 50_257, tied=True), torch.bfloat16),
}


def make_models() -> list[GPT2LMHeadModel]:
    with torch.device(DEVICE):
        return [shape.random_model().to(dtype) for shape, dtype in SHAPES.values()]


def timed(run, tokens: int = TOKENS) -> float:
    """Seconds of one run, after a short one."""
    run(8)
    synchronize()
    began = time.perf_counter()
    run(tokens)
    synchronize()
    return time.perf_counter() - began


def ours(replay: bool, plans: bool) -> dict:
    """Without `plans` as train.py runs, which leaves cuDNN's attention out."""
    if not plans:
        tune()
    student, teacher = map(LanguageModel, make_models())
    student.replay = teacher.replay = replay
    ids = make_prompts(ROWS, PROMPT).to(DEVICE)
    # Rows of unequal length, as prompts are.
    mask = torch.arange(PROMPT, device=DEVICE) >= torch.arange(ROWS, device=DEVICE).unsqueeze(-1) * 3 // 4
    prompts = PromptBatch(ids * mask, mask, torch.arange(ROWS))

    def run(tokens: int, teacher=None, alpha: float = 0.0) -> None:
        options = dict(stop_ids=(), pad_id=0, max_new_tokens=tokens, seeds=list(range(ROWS)), batch_size=ROWS)
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            decode(student, teacher, prompts, alpha=alpha, **options)

    out = {"student": timed(run), "mixture": timed(lambda tokens: run(tokens, teacher, 0.2))}
    assert student.replay is teacher.replay is replay
    return out


def generate() -> dict:
    ids, out = make_prompts(ROWS, PROMPT).to(DEVICE), {}
    for name, model in zip(SHAPES, make_models(), strict=True):

        def run(tokens: int, model=model) -> None:
            options = dict(do_sample=True, top_k=0, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
            with torch.autocast(DEVICE, torch.bfloat16):
                model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)

        out[name] = timed(run)
    return out | {"mixture": out["student"] + out["teacher"]}


def main() -> None:
    if DEVICE != "cuda":
        raise SystemExit("python -m benchmarks.replay: CUDA graphs want a CUDA GPU, and torch sees none here")
    figures = {
        "ours": in_new_process(ours, True, False),
        "step by step": in_new_process(ours, False, False),
        "step by step, cuDNN's attention": in_new_process(ours, False, True),
        "generate": in_new_process(generate),
    }
    rows = [
        row(f"{what} : {peer}", figures["ours"][what], seconds[what], "s", seconds[what] / figures["ours"][what], 3)
        for peer, seconds in figures.items()
        for what in ("student", "mixture")
        if peer != "ours"
    ]
    report("replay", f"other ways; {ROWS} rows x {TOKENS} tokens", rows, figures)


if __name__ == "__main__":
    main()
