"""Losses over the whole vocabulary, from hidden states and heads, without logits of all tokens at once.

An objective gives a loss for each token (`Objective.token_loss`). There are two roads from it to the gradient: plain
autograd over [N, V] log-probs, which is short enough to be read, and chunks of tokens with the gradient taken inside
each, so that logits are made once and never kept.

Axes: N counted tokens, V vocabulary, H width of the student or of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minillm import divergences, losses
from minillm.common.errors import check
from minillm.common.types import LossOutput
from minillm.models.head import Head, product_type
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
        dtype = product_type(self.hidden_NH, self.head.weight_VH)
        return Side(self.hidden_NH.detach().to(dtype), self.head.to(dtype))


@dataclass(frozen=True)
class LinearLoss:
    """The config group `linear_loss`. `chunk_mb`: memory of one chunk's logits in MiB; at most eight such tensors
    live at a time. None takes the plain road; in a config `auto` stands for a number, see `train.preview.AutoSizes`.
    Logits must be finite, as a linear head gives them."""

    chunk_mb: float | Literal["auto"] | None = 64.0

    def __post_init__(self):
        check(
            (
                self.chunk_mb in (None, "auto") or self.chunk_mb > 0,
                f"chunk_mb={self.chunk_mb}: wanted a positive number of MiB, auto, or null for the plain loss",
            )
        )

    def __call__(
        self,
        objective: Objective,
        student: Side,
        teacher: Side | None,
        ids_N: Tensor,
        constants: Mapping[str, Tensor] | None = None,
        *,
        normaliser: int | Tensor,
    ) -> LossOutput:
        """The objective summed over all tokens and divided by the normaliser, with a gradient to the student's hidden
        states and head.

        Args:
            teacher: not read unless the objective needs it. constants: [N] each, see `Objective.token_loss`.
            normaliser: of the whole mini-batch, of which these may be some tokens.
        """
        part = _Part(objective, teacher if objective.needs else None, ids_N, constants or {}, normaliser)
        if self.chunk_mb is None:
            return part.loss(student.logprobs(), slice(0, len(ids_N)))
        head, parts = student.head, {}
        trained = (student.hidden_NH, head.weight_VH, head.bias_V)
        loss = _Chunked.apply(*trained, head, part, parts, self._rows(head))
        return LossOutput(loss, parts)

    def logprobs(self, side: Side, ids_N: Tensor) -> Tensor:
        """[N]: log-prob of each token, without a gradient."""
        return self._values(lambda logq_NV, _, ids_N1: (logq_NV.gather(-1, ids_N1).squeeze(-1),), side, None, ids_N)[0]

    def reverse_kl(self, student: Side, teacher: Side, ids_N: Tensor) -> Tensor:
        """[N]: KL[q || p] over the vocabulary where each token is, without a gradient."""
        return self._values(
            lambda logq_NV, logp_NV, _: (divergences.reverse_kl(logq_NV, logp_NV),), student, teacher, ids_N
        )[0]

    def divergences(self, student: Side, teacher: Side, ids_N: Tensor) -> tuple[Tensor, ...]:
        """[N] each: log q(y), log p(y), KL[q || p], KL[p || q]; the logits of each are made once, no gradient."""

        def values(logq_NV: Tensor, logp_NV: Tensor, ids_N1: Tensor) -> tuple[Tensor, ...]:
            chosen = [each.gather(-1, ids_N1).squeeze(-1) for each in (logq_NV, logp_NV)]
            gap_NV = logq_NV - logp_NV
            reverse_N = torch.linalg.vecdot(logq_NV.exp_(), gap_NV)
            return (*chosen, reverse_N, -torch.linalg.vecdot(logp_NV.exp_(), gap_NV))

        return self._values(values, student, teacher, ids_N)

    @torch.no_grad()
    def _values(
        self, values: Callable[..., tuple[Tensor, ...]], student: Side, teacher: Side | None, ids_N: Tensor
    ) -> tuple[Tensor, ...]:
        student, teacher = student.ready(), teacher and teacher.ready()
        n_rows = max(1, len(ids_N))  # one chunk at least: it gives the types
        found = [
            values(student.logprobs(rows), teacher and teacher.logprobs(rows), ids_N[rows].unsqueeze(-1))
            for rows in _slices(n_rows, n_rows if self.chunk_mb is None else self._rows(student.head))
        ]
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def _rows(self, head: Head) -> int:
        bytes_per_row = len(head.weight_VH) * max(4, head.weight_VH.element_size())
        return max(1, int(self.chunk_mb * 2**20 / bytes_per_row))


class _Part(NamedTuple):
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


class _Chunked(torch.autograd.Function):
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
            for rows in _slices(len(part.ids_N), step):
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


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
