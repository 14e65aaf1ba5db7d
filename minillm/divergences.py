"""Divergences between a student q and a teacher p: log-probs in, nats a position out.

Every function takes log-probs over the whole vocabulary, [..., V] -> [...], with a gradient to the student only. A
token of probability 0 adds 0 to value and gradient (0 log 0 = 0). Where a definition is infinite the value is +inf, and
never NaN.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL[q || p] = sum_v q(v) (log q(v) - log p(v)). This is -E_{y ~ q}[r], the single-step part of MiniLLM's
    decomposition (paper, equation 3)."""
    return _expectation(student_logprobs.exp(), student_logprobs - teacher_logprobs.detach())


def forward_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL[p || q] = sum_v p(v) (log p(v) - log q(v)), the loss of word-level KD less the teacher's entropy."""
    teacher = teacher_logprobs.detach()
    return _expectation(teacher.exp(), teacher - student_logprobs)


def entropy(logprobs: Tensor) -> Tensor:
    """- sum_v p(v) log p(v)."""
    return -_expectation(logprobs.exp(), logprobs)


def top_k_overlap(student_logprobs: Tensor, teacher_logprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Share of the student's k most probable tokens that are among the teacher's k (ties count), and the probability
    that the student gives to those. Well aligned models share 97 to 99% of the probability."""
    k = min(k, student_logprobs.shape[-1])
    top, tokens = student_logprobs.topk(k, dim=-1)
    shared = teacher_logprobs.gather(-1, tokens) >= teacher_logprobs.topk(k, dim=-1).values[..., -1:]
    return shared.to(top.dtype).mean(-1), (top.exp() * shared).sum(-1)


def cross_entropy(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """- sum_v p(v) log q(v): the soft targets of word-level KD."""
    return -_expectation(teacher_logprobs.detach().exp(), student_logprobs)


def jensen_shannon(student_logprobs: Tensor, teacher_logprobs: Tensor, beta: float) -> Tensor:
    """beta KL[p || m] + (1 - beta) KL[q || m] with m = beta p + (1 - beta) q, beta in [0, 1] (GKD, arXiv 2306.13649).
    Its ends are 0; by GKD's convention beta 0 gives KL[p || q] and beta 1 gives KL[q || p]."""
    if beta == 0:
        return forward_kl(student_logprobs, teacher_logprobs)
    if beta == 1:
        return reverse_kl(student_logprobs, teacher_logprobs)
    mixture = _mixture(student_logprobs, teacher_logprobs, 1 - beta)
    teacher = teacher_logprobs.detach()
    of_teacher = _expectation(teacher.exp(), teacher - mixture)
    of_student = _expectation(student_logprobs.exp(), student_logprobs - mixture)
    return beta * of_teacher + (1 - beta) * of_student


def skew_forward(student_logprobs: Tensor, teacher_logprobs: Tensor, alpha: float) -> Tensor:
    """KL[p || alpha p + (1 - alpha) q] (DistiLLM, arXiv 2402.03898); alpha 0 is KL[p || q]."""
    if alpha == 0:
        return forward_kl(student_logprobs, teacher_logprobs)
    teacher = teacher_logprobs.detach()
    return _expectation(teacher.exp(), teacher - _mixture(student_logprobs, teacher_logprobs, 1 - alpha))


def skew_reverse(student_logprobs: Tensor, teacher_logprobs: Tensor, alpha: float) -> Tensor:
    """KL[q || (1 - alpha) p + alpha q] (DistiLLM); alpha 0 is KL[q || p]."""
    if alpha == 0:
        return reverse_kl(student_logprobs, teacher_logprobs)
    mixture = _mixture(student_logprobs, teacher_logprobs, alpha)
    return _expectation(student_logprobs.exp(), student_logprobs - mixture)


def adaptive_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, mass: float) -> Tensor:
    """(g_h KL[p || q] + g_t KL[q || p]) / (g_h + g_t), 0 where p = q (AKL, arXiv 2404.02657).

    The head is the smallest set of the teacher's most probable tokens whose probabilities reach `mass`, the token that
    crosses it included, ties by id. g_h and g_t are the sums of |p - q| over head and tail, without a gradient.
    """
    teacher = teacher_logprobs.detach()
    sorted_probs, order = teacher.exp().sort(dim=-1, descending=True, stable=True)
    inside = sorted_probs.cumsum(-1) - sorted_probs < mass
    head = torch.zeros_like(inside).scatter(-1, order, inside)
    gap = (teacher.exp() - student_logprobs.detach().exp()).abs()
    of_head, of_tail = (gap * head).sum(-1), (gap * ~head).sum(-1)
    total = (of_head + of_tail).clamp(min=torch.finfo(gap.dtype).tiny)
    return _weighted(forward_kl, student_logprobs, teacher, of_head / total) + _weighted(
        reverse_kl, student_logprobs, teacher, of_tail / total
    )


def total_variation(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """1/2 sum_v |p(v) - q(v)| (f-distill, arXiv 2307.15190)."""
    return (teacher_logprobs.detach().exp() - student_logprobs.exp()).abs().sum(-1) / 2


def entropy_aware(student_logprobs: Tensor, teacher_logprobs: Tensor, weight: float, threshold: float) -> Tensor:
    """KL[q || p], plus `weight` KL[p || q] where the teacher's entropy is above `threshold` nats (EOPD)."""
    teacher = teacher_logprobs.detach()
    uncertain = weight * (entropy(teacher) > threshold).to(teacher.dtype)
    return reverse_kl(student_logprobs, teacher) + _weighted(forward_kl, student_logprobs, teacher, uncertain)


def top_k_with_tail(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    k: int,
    of: Literal["student", "teacher", "both"] = "teacher",
    kind: Literal["reverse", "forward"] = "reverse",
) -> Tensor:
    """The KL of k + 1 classes: the k most probable tokens of student or teacher (or both sets together), and all other
    tokens as one class. At most the full KL, and equal to it at k = V. The set is held fixed in gradients. Without the
    tail, the plain sum would move mass out of the set."""
    student, teacher = student_logprobs, teacher_logprobs.detach()
    chosen = torch.zeros_like(teacher, dtype=torch.bool)
    for name, logprobs in (("student", student.detach()), ("teacher", teacher)):
        if of in (name, "both"):
            chosen = chosen.scatter(-1, logprobs.topk(min(k, logprobs.shape[-1]), dim=-1).indices, True)
    classes = [
        torch.cat([each.masked_fill(~chosen, -math.inf), _log_sum(each, ~chosen).unsqueeze(-1)], dim=-1)
        for each in (student, teacher)
    ]
    return (reverse_kl if kind == "reverse" else forward_kl)(*classes)


def _expectation(probs: Tensor, values: Tensor) -> Tensor:
    # A token of probability 0 adds 0 even where its log is -inf; filled before the product, so the gradient is 0 too.
    return (probs * values.masked_fill(probs == 0, 0)).sum(-1)


def _mixture(student_logprobs: Tensor, teacher_logprobs: Tensor, share: float) -> Tensor:
    """log(share q + (1 - share) p). Where both are 0 the value is of no use, but its gradient must be finite."""
    teacher = teacher_logprobs.detach()
    neither = (student_logprobs == -math.inf) & (teacher == -math.inf)
    student, teacher = student_logprobs.masked_fill(neither, 0.0), teacher.masked_fill(neither, 0.0)
    if share == 1:
        return student
    return torch.logaddexp(student + math.log(share), teacher + math.log1p(-share)) if share else teacher


def _weighted(divergence, student_logprobs: Tensor, teacher_logprobs: Tensor, weights: Tensor) -> Tensor:
    """weights * divergence; where the weight is 0, so are value and gradient, even of an infinite divergence."""
    off = (weights == 0).unsqueeze(-1)
    return weights * divergence(torch.where(off, teacher_logprobs, student_logprobs), teacher_logprobs)


def _log_sum(logprobs: Tensor, members: Tensor) -> Tensor:
    """log of the summed probabilities of `members`; -inf, with a gradient of 0, where they have none."""
    members = members & (logprobs > -math.inf)
    some = members.any(-1, keepdim=True)
    inside = torch.where(some, logprobs.masked_fill(~members, -math.inf), torch.zeros_like(logprobs))
    return torch.where(some.squeeze(-1), torch.logsumexp(inside, dim=-1), -math.inf)
