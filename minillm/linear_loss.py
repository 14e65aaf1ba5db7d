"""Losses over the whole vocabulary, from hidden states and heads, without logits of all tokens at once.

An objective is a function of a few numbers a token (`TokenValues`). There are two roads to them and to the gradient:
plain autograd over [N, V] logits, which is short enough to be read, and chunks of tokens with the gradient in closed
form, computed on the way there, so that logits are made once and never kept.

Axes: N counted tokens, V vocabulary, H width of the student or of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minillm import losses
from minillm.errors import check
from minillm.models.head import Head, product_type
from minillm.types import LossOutput

REVERSE_KL, SOFT_CROSS_ENTROPY = "reverse_kl_N", "soft_cross_entropy_N"


class Side(NamedTuple):
    """One model at the counted tokens: the hidden states that predict them and the head that makes logits of them."""

    hidden_NH: Tensor
    head: Head

    def logits(self, rows: slice = slice(None)) -> Tensor:
        return self.head(self.hidden_NH[rows])

    def ready(self) -> Side:
        """With inputs in the type of the product, so that chunks do not cast the head again and again; no gradient."""
        dtype = product_type(self.hidden_NH, self.head.weight_VH)
        return Side(self.hidden_NH.detach().to(dtype), self.head.to(dtype))


@dataclass(frozen=True)
class TokenValues:
    """[N] each: log q(y); KL[q || p] and - sum_v p(v) log q(v) over the whole vocabulary, None where not asked for."""

    logprobs_N: Tensor
    reverse_kl_N: Tensor | None = None
    soft_cross_entropy_N: Tensor | None = None


# From the values of some of the tokens and which tokens they are to their part of the loss: it must be a sum over
# tokens, with a denominator that does not depend on the choice of tokens.
Objective = Callable[[TokenValues, slice], LossOutput]


@dataclass(frozen=True)
class LinearLoss:
    """The config group `linear_loss`. `chunk_mb`: memory of one chunk's logits in MiB; at most seven such tensors
    live at a time. None takes the plain road; in a config `auto` stands for a number, see `planning.AutoSizes`. Logits
    must be finite, as a linear head gives them."""

    chunk_mb: float | Literal["auto"] | None = 64.0

    def __post_init__(self):
        check(
            (
                self.chunk_mb in (None, "auto") or self.chunk_mb > 0,
                f"chunk_mb={self.chunk_mb}: wanted a positive number of MiB, auto, or null for the plain loss",
            )
        )

    def __call__(
        self, student: Side, teacher: Side | None, ids_N: Tensor, wanted: tuple[str, ...], objective: Objective
    ) -> LossOutput:
        """The objective summed over all tokens, with a gradient to the student's hidden states and head.

        Args:
            wanted: REVERSE_KL, SOFT_CROSS_ENTROPY, both or none; they need the teacher.
        """
        if self.chunk_mb is None:
            return objective(plain_values(student, teacher, ids_N, wanted), slice(0, len(ids_N)))
        head, parts = student.head, {}
        trained = (student.hidden_NH, head.weight_VH, head.bias_V)
        loss = _Chunked.apply(*trained, head, teacher, ids_N, wanted, objective, parts, self._rows(head))
        return LossOutput(loss, parts)

    @torch.no_grad()
    def values(self, student: Side, teacher: Side | None, ids_N: Tensor, wanted: tuple[str, ...] = ()) -> TokenValues:
        """`TokenValues` without a gradient."""
        step = max(1, len(ids_N)) if self.chunk_mb is None else self._rows(student.head)
        student, teacher = student.ready(), teacher and teacher.ready()
        chunks = [
            plain_values(
                Side(student.hidden_NH[rows], student.head),
                teacher and Side(teacher.hidden_NH[rows], teacher.head),
                ids_N[rows],
                wanted,
            )
            for rows in _slices(max(1, len(ids_N)), step)
        ]
        return TokenValues(
            **{name: torch.cat([getattr(each, name) for each in chunks]) for name in ("logprobs_N", *wanted)}
        )

    @torch.no_grad()
    def divergences(self, student: Side, teacher: Side, ids_N: Tensor) -> tuple[Tensor, ...]:
        """[N] each: log q(y), log p(y), KL[q || p], KL[p || q]; the logits of each are made once, no gradient."""
        found, student, teacher = [], student.ready(), teacher.ready()
        for rows in _slices(len(ids_N), max(1, len(ids_N)) if self.chunk_mb is None else self._rows(student.head)):
            logq_NV, logp_NV = losses.log_softmax(student.logits(rows)), losses.log_softmax(teacher.logits(rows))
            gap_NV, ids_N1 = logq_NV - logp_NV, ids_N[rows].unsqueeze(-1)
            chosen = [each.gather(-1, ids_N1).squeeze(-1) for each in (logq_NV, logp_NV)]
            reverse_N = torch.linalg.vecdot(logq_NV.exp_(), gap_NV)
            found.append((*chosen, reverse_N, -torch.linalg.vecdot(logp_NV.exp_(), gap_NV)))
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def _rows(self, head: Head) -> int:
        bytes_per_row = len(head.weight_VH) * max(4, head.weight_VH.element_size())
        return max(1, int(self.chunk_mb * 2**20 / bytes_per_row))


def plain_values(student: Side, teacher: Side | None, ids_N: Tensor, wanted: tuple[str, ...]) -> TokenValues:
    """The readable road: every [N, V] tensor in memory, gradients by autograd."""
    logits_NV = student.logits()
    teacher_NV = teacher.logits().detach() if wanted else None
    return TokenValues(
        logprobs_N=losses.token_logprobs(logits_NV, ids_N),
        reverse_kl_N=losses.reverse_kl(logits_NV, teacher_NV) if REVERSE_KL in wanted else None,
        soft_cross_entropy_N=losses.soft_cross_entropy(logits_NV, teacher_NV) if SOFT_CROSS_ENTROPY in wanted else None,
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, head, teacher, ids_N, wanted, objective, parts, step):
        student, teacher = Side(hidden_NH, head).ready(), teacher and teacher.ready()
        dtype = student.hidden_NH.dtype
        with torch.autocast(hidden_NH.device.type, enabled=False):
            grad_NH = torch.empty_like(hidden_NH)
            grad_VH, grad_V = (  # a frozen head needs none
                torch.zeros_like(each) if needed else None
                for each, needed in zip((weight_VH, bias_V), ctx.needs_input_grad[1:3], strict=True)
            )
            total = 0.0
            for rows in _slices(len(ids_N), step):
                logits = student.logits(rows)
                # The teacher's logits have no name here, so that they go as soon as they have been used.
                output, grad = _loss_and_grad(
                    logits, teacher.logits(rows) if wanted else None, ids_N[rows], wanted, objective, rows
                )
                total = total + output.loss
                for name, value in output.parts.items():
                    parts[name] = parts.get(name, 0.0) + value
                grad = student.head.backward(logits, grad)
                if grad_V is not None:
                    grad_V += grad.sum(0)
                grad = grad.to(dtype)
                grad_NH[rows] = grad @ student.head.weight_VH
                if grad_VH is None:
                    continue
                if dtype == grad_VH.dtype:
                    grad_VH.addmm_(grad.T, student.hidden_NH[rows])
                else:
                    grad_VH += grad.T @ student.hidden_NH[rows]
        ctx.save_for_backward(grad_NH, grad_VH, grad_V)
        ctx.spent = False
        return total if isinstance(total, Tensor) else hidden_NH.new_zeros(())

    @staticmethod
    def backward(ctx, grad_output):
        if ctx.spent:
            raise RuntimeError("the chunked loss has been differentiated before: its gradient is used up")
        ctx.spent = True
        # In place: the tensors are ours, and the factor is 1 but for loss scaling.
        grads = (each if each is None else each.mul_(grad_output) for each in ctx.saved_tensors)
        return *grads, None, None, None, None, None, None, None


def _loss_and_grad(
    logits_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, wanted: tuple[str, ...], objective: Objective, rows
) -> tuple[LossOutput, Tensor]:
    """One chunk's part of the loss and its gradient with respect to the logits.

    With a, k, c the derivatives of the loss by log q(y), KL[q || p] and the soft cross entropy of a token:
    a (onehot(y) - q) + k q (log q - log p - KL) + c (q - p).
    """
    logq_NV = torch.log_softmax(logits_NV, dim=-1)
    q_NV = logq_NV.exp()
    values = {"logprobs_N": logq_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)}
    if wanted:
        logp_NV = torch.log_softmax(teacher_NV, dim=-1)
        del teacher_NV
    if SOFT_CROSS_ENTROPY in wanted:
        p_NV = logp_NV.exp()
        values[SOFT_CROSS_ENTROPY] = -torch.linalg.vecdot(p_NV, logq_NV)
    if REVERSE_KL in wanted:
        gap_NV = torch.sub(logq_NV, logp_NV, out=logp_NV)
        values[REVERSE_KL] = torch.linalg.vecdot(q_NV, gap_NV)

    with torch.enable_grad():
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        output = objective(TokenValues(**leaves), rows)
        slopes = torch.autograd.grad(output.loss, list(leaves.values()), allow_unused=True)
    zeros = torch.zeros_like(values["logprobs_N"])
    slope = {name: zeros if each is None else each for name, each in zip(leaves, slopes, strict=True)}
    a, k, c = (slope.get(name, zeros) for name in ("logprobs_N", REVERSE_KL, SOFT_CROSS_ENTROPY))

    if REVERSE_KL in wanted:
        offset_N = k * values[REVERSE_KL].detach() + a - c
        grad_NV = gap_NV.mul_(k.unsqueeze(-1)).sub_(offset_N.unsqueeze(-1)).mul_(q_NV)
    else:
        grad_NV = q_NV.mul_((c - a).unsqueeze(-1))
    if SOFT_CROSS_ENTROPY in wanted:
        grad_NV.addcmul_(p_NV, -c.unsqueeze(-1))
    grad_NV.scatter_add_(-1, ids_N.unsqueeze(-1), a.unsqueeze(-1))
    return LossOutput(output.loss.detach(), output.parts), grad_NV


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
