"""Divergences between a student q and a teacher p: log-probs in, nats a position out.

Every function takes log-probs over the whole vocabulary, [..., V] -> [...], with a gradient to the student only.
"""

from __future__ import annotations

from torch import Tensor


def reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL[q || p] = sum_v q(v) (log q(v) - log p(v)). This is -E_{y ~ q}[r], the single-step part of MiniLLM's
    decomposition (paper, equation 3)."""
    return _expectation(student_logprobs.exp(), student_logprobs - teacher_logprobs.detach())


def cross_entropy(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """- sum_v p(v) log q(v): the soft targets of word-level KD."""
    return -_expectation(teacher_logprobs.detach().exp(), student_logprobs)


def _expectation(probs: Tensor, values: Tensor) -> Tensor:
    # A token of probability 0 adds 0 even where its log is -inf; filled before the product, so the gradient is 0 too.
    return (probs * values.masked_fill(probs == 0, 0)).sum(-1)
