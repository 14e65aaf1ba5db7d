"""Figures of a rollout that are logged beside its losses.

Axes: B rows, R response positions, N counted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minillm.common.types import Rollout
from minillm.objectives import Objective, TokenLoss
from minillm.parallel import Group

_FROM = (1, 17, 65, 257, 1025)  # positions of an answer


def rollout_figures(
    rollout: Rollout, stop_ids: Sequence[int], seconds: float, stored: Sequence[int] = ()
) -> dict[str, float]:
    """Of the sampled answers of a rollout, which took so many seconds but for the `stored` rows; and the share of given
    ones if there are any, or of those that could not be aligned with a teacher of other tokens."""
    drawn = [row for row in range(len(rollout)) if row not in stored]
    n_tokens = int(rollout.response_mask_BR[drawn].sum())
    return ({"time/tokens_per_second": n_tokens / seconds} if n_tokens else {}) | _figures(rollout, stop_ids)


def _figures(rollout: Rollout, stop_ids: Sequence[int]) -> dict[str, float]:
    if rollout.spans_BR2 is not None:
        kept_B = rollout.response_mask_BR.any(-1)
        share = {"rollout/dropped": 1 - kept_B.double().mean().item()}
        rest = replace(rollout.rows(kept_B), spans_BR2=None)
        return share | (_figures(rest, stop_ids) if len(rest) else {})
    if rollout.given_B is not None:
        share = {"rollout/given": rollout.given_B.float().mean().item()}
        drawn = replace(rollout.rows(~rollout.given_B), given_B=None)
        return share | (_figures(drawn, stop_ids) if len(drawn) else {})
    mask_BR = rollout.response_mask_BR
    gap_BR = rollout.student_logprobs_BR - rollout.teacher_logprobs_BR
    gap = gap_BR[mask_BR]
    last_B = rollout.response_ids_BR.gather(1, mask_BR.sum(-1, keepdim=True) - 1).squeeze(1)
    stops = torch.tensor(stop_ids, device=last_B.device)
    some = {} if rollout.rewards_B is None else {"train/reward": rollout.rewards_B.mean().item()}
    if rollout.near_edge_BR is not None:  # draws that rounding may turn; see `Rollout`
        some["rollout/near_edge"] = rollout.near_edge_BR[mask_BR].float().mean().item()
    return some | {
        "rollout/length": int(mask_BR.sum()) / len(rollout),
        "rollout/truncated": (~torch.isin(last_B, stops)).float().mean().item(),
        # log q - log p of tokens drawn from the mixture: an estimate that alpha > 0 biases; val/ has the exact one.
        "rollout/reverse_kl_sampled": gap.mean().item(),
        **_by_position(gap_BR, mask_BR),
    }


def _by_position(gap_BR: Tensor, mask_BR: Tensor) -> dict[str, float]:
    """The sampled reverse KL of the tokens from each position of `_FROM` to the next; those that no answer reaches are
    absent."""
    found = {}
    for first, last in zip(_FROM, (*_FROM[1:], None), strict=True):
        part = slice(first - 1, last and last - 1)
        if mask_BR[:, part].any():
            found[f"rollout/reverse_kl_sampled_from_{first}"] = gap_BR[:, part][mask_BR[:, part]].mean().item()
    return found


class Watched:
    """An objective that adds up log q(update) - log q(rollout) of the tokens of the first optimizer step, nats. The
    weights are still those of the rollout there: the figures show rounding, and nothing else."""

    def __init__(self, device: torch.device):
        self._objective: Objective | None = None
        # Sums, in place: kept tensors would keep a CPU from using freed memory again, see `chunk_values`.
        self._sum, self._largest = torch.zeros(2, dtype=torch.float64, device=device)
        self._n_tokens = 0

    def of(self, objective: Objective) -> Watched:
        self._objective, self.needs = objective, objective.needs
        return self

    def token_loss(self, student_NV: Tensor, teacher_NV: Tensor | None, ids_N: Tensor, constants) -> TokenLoss | Tensor:
        gap_N = student_NV.detach().gather(-1, ids_N.unsqueeze(-1)).squeeze(-1) - constants["old_logprobs"]
        self._sum += gap_N.sum()
        self._largest.clamp_(min=gap_N.abs().max())
        self._n_tokens += len(gap_N)
        return self._objective.token_loss(student_NV, teacher_NV, ids_N, constants)

    def figures(self, group: Group) -> dict[str, float]:
        """Mean and largest over the devices."""
        sums = group.total({"gap": float(self._sum), "tokens": self._n_tokens})
        name = "rollout/log_ratio_first_step"
        largest = max(group.join([float(self._largest)]))
        return {name: sums["gap"] / max(1, sums["tokens"]), f"{name}_max": largest}
