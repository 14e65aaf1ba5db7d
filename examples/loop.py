"""MiniLLM as one's own loop: sample, compute the loss, step, print the KL.

python examples/loop.py STUDENT TEACHER PROMPTS.jsonl [STEPS]
"""

import sys
from itertools import islice

import torch

import minillm


def main(student: str, teacher: str, prompts: str, steps: int = 20, learning_rate: float = 1e-4) -> minillm.Pair:
    """Each step answers 16 prompts and learns from the answers once; returns the pair, whose student is trained."""
    pair = minillm.load_pair(student, teacher)
    objective = minillm.MiniLLM()
    sampler = minillm.Sampler(alpha=0.2, max_new_tokens=64)
    optimizer = torch.optim.AdamW(pair.student.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    answers = minillm.rollouts(pair, prompts, size=16, sampler=sampler)
    for step, rollout in enumerate(islice(answers, steps), start=1):
        losses = minillm.backward(pair, rollout, objective)
        torch.nn.utils.clip_grad_norm_(pair.student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        length = rollout.response_mask_BR.sum(-1).float().mean()
        # The exact reverse KL of this step's answers, weighted as they were drawn.
        print(f"step {step}: reverse KL {losses['single']:.4f}, loss {losses['loss']:.4f}, length {length:.1f}")
    return pair


if __name__ == "__main__":
    trained = main(*sys.argv[1:4], *map(int, sys.argv[4:5])) if sys.argv[3:] else sys.exit(__doc__)
    minillm.Student(trained).save_pretrained("distilled")
