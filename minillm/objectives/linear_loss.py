"""Losses over the whole vocabulary, from hidden states and heads, without logits of all tokens at once.

An objective gives a loss for each token (`Objective.token_loss`). Its gradient is taken by autograd inside each chunk
of tokens: logits are made once and never kept. Without chunks it is plain autograd over all [N, V] log-probs.

Axes: N counted tokens, V vocabulary, H width of the student or of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minillm.common.errors import check
from minillm.common.lazy import lazy
from minillm.objectives import TEACHER, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import LossOutput
    from minillm.models.head import Head
    from minillm.objectives.chunked import Side

torch, chunked = lazy("torch"), lazy("minillm.objectives.chunked")
divergences = lazy("minillm.divergences")


@dataclass(frozen=True)
class LinearLoss:
    """The config group `linear_loss`. `chunk_mb`: memory of one chunk's logits in MiB; about nine such tensors
    live at a time. None makes all logits at once; in a config `auto` stands for a number, see `train.preview.memory`.
    Logits must be finite, as a linear head gives them."""

    chunk_mb: float | Literal["auto"] | None = 32.0

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
        from minillm.common.types import LossOutput

        part = chunked.Part(
            objective, teacher if TEACHER in objective.needs else None, ids_N, constants or {}, normaliser
        )
        if self.chunk_mb is None:
            return part.loss(student.logprobs(), slice(0, len(ids_N)))
        head, parts = student.head, {}
        trained = (student.hidden_NH, head.weight_VH, head.bias_V)
        loss = chunked.Chunked.apply(*trained, head, part, parts, self._rows(head))
        return LossOutput(loss, parts)

    def logprobs(self, side: Side, ids_N: Tensor, alike: tuple[int, ...] = ()) -> Tensor:
        """[N]: log-prob of each token, without a gradient; for one of `alike` that of any of them."""

        def values(logq_NV: Tensor, _, ids_N1: Tensor) -> tuple[Tensor]:
            chosen_N = logq_NV.gather(-1, ids_N1).squeeze(-1)
            if len(alike) > 1:
                one_N = torch.isin(ids_N1.squeeze(-1), torch.tensor(alike, device=ids_N1.device))
                chosen_N = torch.where(one_N, logq_NV[:, list(alike)].logsumexp(-1), chosen_N)
            return (chosen_N,)

        return self._values(values, side, None, ids_N)[0]

    def costs(self, objective: Objective, student: Side, teacher: Side, ids_N: Tensor) -> Tensor:
        """[N]: the objective's costs where each token is, without a gradient."""

        def values(logq_NV: Tensor, logp_NV: Tensor, _) -> tuple[Tensor]:
            return (objective.costs(logq_NV, logp_NV),)

        return self._values(values, student, teacher, ids_N)[0]

    def alignment(self, student: Side, teacher: Side, ids_N: Tensor, k: int) -> tuple[Tensor, ...]:
        """[N] each: KL[q || p], the entropies of q and p, and `divergences.top_k_overlap`, without a gradient."""

        def values(logq_NV: Tensor, logp_NV: Tensor, _) -> tuple[Tensor, ...]:
            entropies = map(divergences.entropy, (logq_NV, logp_NV))
            overlap = divergences.top_k_overlap(logq_NV, logp_NV, k)
            return (divergences.reverse_kl(logq_NV, logp_NV), *entropies, *overlap)

        return self._values(values, student, teacher, ids_N)

    def divergences(self, student: Side, teacher: Side, ids_N: Tensor) -> tuple[Tensor, ...]:
        """[N] each: log q(y), log p(y), KL[q || p], KL[p || q]; the logits of each are made once, no gradient."""

        def values(logq_NV: Tensor, logp_NV: Tensor, ids_N1: Tensor) -> tuple[Tensor, ...]:
            chosen = [each.gather(-1, ids_N1).squeeze(-1) for each in (logq_NV, logp_NV)]
            gap_NV = logq_NV - logp_NV
            reverse_N = torch.linalg.vecdot(logq_NV.exp_(), gap_NV)
            return (*chosen, reverse_N, -torch.linalg.vecdot(logp_NV.exp_(), gap_NV))

        return self._values(values, student, teacher, ids_N)

    def _values(self, values: Callable, student: Side, teacher: Side | None, ids_N: Tensor) -> tuple[Tensor, ...]:
        step = None if self.chunk_mb is None else self._rows(student.head)
        return chunked.chunk_values(values, student, teacher, ids_N, step)

    def _rows(self, head: Head) -> int:
        return max(1, int(self.chunk_mb * 2**20 / head.logit_bytes))
