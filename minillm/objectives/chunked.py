"""Losses over the whole vocabulary, from hidden states and heads, without logits of all tokens at once.

An objective gives a loss for each token (`Objective.token_loss`). There are two roads from it to the gradient: plain
autograd over [N, V] log-probs, which is short enough to be read, and chunks of tokens with the gradient taken inside
each, so that logits are made once and never kept.

Axes: N counted tokens, V vocabulary, H width of the student or of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from minillm import losses
from minillm.common.types import LossOutput
from minillm.models.head import Head
from minillm.objectives import Objective, TokenLoss


class Side(NamedTuple):
    """One model at the counted tokens: the hidden states that predict them and the head that makes logits of them."""

    hidden_NH: Tensor
    head: Head

    def logits(self, rows: slice = slice(None)) -> Tensor:
        return self.head(self.hidden_NH[rows])

    def logprobs(self, rows: slice = slice(None)) -> Tensor:
        """[N, V], in at least float32."""
        return losses.log_softmax(self.logits(rows))

    def ready(self) -> Side:
        """With inputs in the type of the product, so that chunks do not cast the head again and again; no gradient."""
        dtype = self.head.input_type(self.hidden_NH)
        return Side(self.hidden_NH.detach().to(dtype), self.head.to(dtype))


class Part(NamedTuple):
    """An objective at some tokens of a mini-batch."""

    objective: Objective
    teacher: Side | None
    ids_N: Tensor
    constants: Mapping[str, Tensor]
    normaliser: int | Tensor

    def loss(self, student_NV: Tensor, rows: slice) -> LossOutput:
        """Of the chunk whose log-probs these are."""
        teacher_NV = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_NV = self.teacher.logprobs(rows)
        constants = {name: each[rows] for name, each in self.constants.items()}
        found = self.objective.token_loss(student_NV, teacher_NV, self.ids_N[rows], constants)
        values_N, parts = found if isinstance(found, TokenLoss) else (found, {})
        parts = {name: each.detach().sum() / self.normaliser for name, each in parts.items()}
        return LossOutput(values_N.sum() / self.normaliser, parts)


class Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, head, part, parts, step):
        student = Side(hidden_NH, head).ready()
        part = part._replace(teacher=part.teacher and part.teacher.ready())
        dtype = student.hidden_NH.dtype
        with torch.autocast(hidden_NH.device.type, enabled=False):
            grad_NH = torch.empty_like(hidden_NH)
            grad_VH, grad_V = (  # a frozen head needs none
                torch.zeros_like(each) if needed else None
                for each, needed in zip((weight_VH, bias_V), ctx.needs_input_grad[1:3], strict=True)
            )
            total = hidden_NH.new_zeros((), dtype=losses.raise_half(hidden_NH[:0]).dtype)
            for rows in slices(len(part.ids_N), step):
                logits = student.logits(rows)
                with torch.enable_grad():
                    output = part.loss(losses.log_softmax(logits.requires_grad_()), rows)
                    (grad,) = torch.autograd.grad(output.loss, logits)
                total = total + output.loss.detach()
                for name, value in output.parts.items():
                    parts[name] = parts.get(name, 0.0) + value
                grad = student.head.backward(logits.detach(), grad)
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
        return total

    @staticmethod
    def backward(ctx, grad_output):
        if ctx.spent:
            raise RuntimeError("the chunked loss has been differentiated before: its gradient is used up")
        ctx.spent = True
        # In place: the tensors are ours, and the factor is 1 but for loss scaling.
        grads = (each if each is None else each.mul_(grad_output) for each in ctx.saved_tensors)
        return *grads, None, None, None, None


def slices(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


@torch.no_grad()
def chunk_values(
    values: Callable[..., tuple[Tensor, ...]], student: Side, teacher: Side | None, ids_N: Tensor, step: int | None
) -> tuple[Tensor, ...]:
    """[N] each: `values` of log-probs and ids, `step` tokens at a time (None: all at once), without a gradient."""
    student, teacher = student.ready(), teacher and teacher.ready()
    found: list[Tensor] = []
    for rows in slices(max(1, len(ids_N)), step or max(1, len(ids_N))):  # one chunk at least: it gives the types
        each = values(student.logprobs(rows), teacher and teacher.logprobs(rows), ids_N[rows].unsqueeze(-1))
        # One tensor for all chunks: on a CPU a small one kept from each would stand where the next chunk's large ones
        # were, and memory would grow by a chunk at a time.
        found = found or [value.new_empty(len(ids_N), *value.shape[1:]) for value in each]
        for whole, value in zip(found, each, strict=True):
            whole[rows] = value
    return tuple(found)
