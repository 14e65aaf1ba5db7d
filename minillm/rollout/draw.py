"""Draws by the inverse of the cumulative distribution, in two levels: first a block of tokens, then a token in it.

Axes: V vocabulary, B rows. Logits come as [V, B]: the head gives them so at least cost, and sums over blocks of V
read B neighbours at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # tokens
EDGE = 1e-5  # in float32, a draw so close to a step of the cumulative distribution may fall on its other side


class Distribution:
    """softmax over the first axis of `logits_VB` (float32 or float64), and its sums over blocks of tokens."""

    def __init__(self, logits_VB: Tensor):
        self.logits_VB = logits_VB
        whole = len(logits_VB) // BLOCK * BLOCK
        blocks_KCB, rest_VB = logits_VB[:whole].unflatten(0, (-1, BLOCK)), logits_VB[whole:]
        # Over blocks first: a maximum over one long axis beside few rows takes 40 times as long on a CPU.
        maxima = [blocks_KCB.amax(0).amax(0)] if whole else []
        maxima += [rest_VB.amax(0)] if len(rest_VB) else []
        self.max_B = torch.stack(maxima).amax(0)
        self.weights_VB = (logits_VB - self.max_B).exp_()
        sums = self.weights_VB[:whole].unflatten(0, (-1, BLOCK)).sum(1)
        if len(rest_VB):
            sums = torch.cat([sums, self.weights_VB[whole:].sum(0, keepdim=True)])
        self.sums_KB = sums.double()  # K blocks; few numbers, so the cumulative sum may be exact
        self.total_B = self.sums_KB.sum(0)

    def most_likely(self) -> Tensor:
        """Greedy choice, [B] int64."""
        return self.logits_VB.argmax(0)

    def logprobs(self, ids_B: Tensor) -> Tensor:
        """log-probability of one token a row, in the logits' type."""
        logits_B = self.logits_VB.gather(0, ids_B.unsqueeze(0)).squeeze(0)
        return logits_B - self.max_B - self.total_B.log().to(logits_B)


def draw(parts: list[tuple[Distribution, float]], uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row from the mixture of `parts`, each with its share; [B] int64: the first whose cumulative
    probability exceeds u in [0, 1), never one of probability 0. Also [B] bool: whether u lies within EDGE of the next
    token's share."""
    scales = [share / part.total_B for part, share in parts]
    sums_KB = sum(part.sums_KB * scale for (part, _), scale in zip(parts, scales, strict=True))
    block_B, rest_B, _ = _invert(sums_KB, uniforms_B * sums_KB.sum(0))

    n_vocab = len(parts[0][0].weights_VB)
    index_CB = block_B * BLOCK + torch.arange(BLOCK, device=block_B.device).unsqueeze(-1)  # C tokens of the block
    inside_CB = index_CB < n_vocab
    index_CB = index_CB.clamp(max=n_vocab - 1)
    probs_CB = sum(
        part.weights_VB.gather(0, index_CB).double() * scale for (part, _), scale in zip(parts, scales, strict=True)
    )
    offset_B, _, margin_B = _invert(probs_CB * inside_CB, rest_B)
    return block_B * BLOCK + offset_B, margin_B < EDGE


def _invert(values_KB: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first k whose cumulative sum exceeds the target, what of the target is left there, and its distance to the
    nearer end of the step."""
    ends_KB = values_KB.cumsum(0)
    total_B = ends_KB[-1]
    target_B = torch.minimum(target_B.to(ends_KB), torch.nextafter(total_B, torch.zeros_like(total_B)))
    k_B = (ends_KB <= target_B).sum(0)
    end_B = ends_KB.gather(0, k_B.unsqueeze(0)).squeeze(0)
    rest_B = (target_B - (end_B - values_KB.gather(0, k_B.unsqueeze(0)).squeeze(0))).clamp(min=0)
    return k_B, rest_B, torch.minimum(rest_B, end_B - target_B)
