"""python -m benchmarks.update: the update of SmolLM2-135M as a share of the machine's peak. About 5 minutes on 2 cores.

Counted are the operations that are needed: products of the student's body and head (forward once, backward twice that)
and of the teacher's head, and causal attention; nothing is counted for recomputation, softmax, norms or padding.
"""

import time

import torch

from benchmarks.common import DEVICE, WARM_UP, in_new_process, matrix_peak, median, report, row, synchronize
from benchmarks.models import SIZES, VOCABULARY, make_model

ROWS, PROMPT, TOKENS = 16, 32, 256
SHAPE = SIZES["SmolLM2-135M"]


def make_step(
    name: str, rows: int, prompt: int, tokens: int, vocabulary: int = VOCABULARY, compiled: bool = False, **sizes
):
    """A function that makes one optimizer step on random answers, and the model."""
    from minillm.common.types import Rollout
    from minillm.models import LanguageModel
    from minillm.objectives import MiniLLM
    from minillm.objectives.chunked import Side
    from minillm.objectives.linear_loss import LinearLoss
    from minillm.rollout import prepared
    from minillm.rollout.micro_batch import micro_batches
    from minillm.train.optim import Optim

    network = make_model(name, vocabulary, DEVICE).train()
    model, width = LanguageModel(network, compile=compiled), network.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (rows, prompt + tokens), generator=generator).to(DEVICE)
    mask = torch.ones_like(ids, dtype=torch.bool)
    logprobs = torch.randn(2, rows, tokens, generator=generator).to(DEVICE)
    hidden = torch.randn(rows, tokens, width, generator=generator).to(DEVICE)
    parts = (ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:], *logprobs, hidden)
    objective, optim = MiniLLM(), Optim()
    linear_loss, budget = LinearLoss(**sizes.get("linear_loss", {})), sizes.get("microbatch_tokens", 2048)
    experience = prepared(Rollout(*parts, behaviour_logprobs_BR=logprobs[0]), objective)
    optimizer = optim.build(network.parameters())
    teacher_head = LanguageModel(make_model(name, vocabulary, DEVICE)).head()

    def step():
        normaliser = objective.normaliser(experience.response_mask_BR)
        for micro in micro_batches(experience, budget):
            constants = {name: micro.take(each) for name, each in experience.constants.items()}
            teacher = Side(micro.take(experience.teacher_hidden_BRH), teacher_head)
            ids_N = micro.take(experience.response_ids_BR)
            output = linear_loss(objective, micro.side(model), teacher, ids_N, constants, normaliser=normaliser)
            output.loss.backward()
        optim.step(optimizer, optim.norm(optimizer), 1e-6)

    return step, network


def needed_operations(network, rows: int, prompt: int, tokens: int, vocabulary: int = VOCABULARY) -> float:
    config, length = network.config, prompt + tokens - 1
    body = sum(each.numel() for each in network.model.layers.parameters() if each.dim() > 1)
    width = config.num_attention_heads * config.head_dim
    attention = config.num_hidden_layers * 2 * 2 * width * (length * (length + 1) // 2) * rows
    student_head = 2 * vocabulary * config.hidden_size * rows * tokens
    return 3 * (2 * body * rows * length + attention + student_head) + student_head  # the teacher's head is as wide


def measure(compiled: bool) -> dict:
    from minillm.common.machine import tune

    tune()
    step, network = make_step("SmolLM2-135M", ROWS, PROMPT, TOKENS, compiled=compiled)
    seconds, peaks = [], [matrix_peak()]
    for _ in range(WARM_UP + 5):
        synchronize()
        began = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - began)
    peaks.append(matrix_peak())
    return {
        "seconds": seconds[WARM_UP:],
        "peaks": peaks,
        "operations": needed_operations(network, ROWS, PROMPT, TOKENS),
    }


def main() -> None:
    figures, rows = {}, []
    for name, compiled in (("eager", False), ("model.compile=true", True)):
        figures[name] = in_new_process(measure, compiled)
        rate = figures[name]["operations"] / median(figures[name]["seconds"]) / 1e9
        peak = max(each["peak"] for each in figures[name]["peaks"]) / 1e9
        rows.append(row(f"update, {name}", rate, peak, "GFLOP/s", rate / peak, 0.75))
    report("update", f"square float32 products; SmolLM2-135M, {ROWS} x {TOKENS} tokens", rows, figures)


if __name__ == "__main__":
    main()
