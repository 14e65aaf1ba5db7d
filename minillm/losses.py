"""The mathematics of MiniLLM (arXiv 2306.08543): tensors in, tensors out; no model, no config, no device moves.

Axes: B sequences, T response positions, V vocabulary. logits [B, T, V], everything else [B, T]; `mask` is bool, True =
counts (every response token up to and including its first stop token). Symbols: q student, p teacher,
w importance weight, r_t = log p(y_t) - log q(y_t), R_t = sum_{t'>=t} r_t'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm import divergences


def raise_half(values: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay. A log-softmax in half precision loses the rewards."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def log_softmax(logits: Tensor) -> Tensor:
    """log-softmax over the last axis in at least float32."""
    return torch.log_softmax(raise_half(logits), dim=-1)


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log-probability of each given token. logits [..., V], ids [...] int64 -> [...]."""
    return log_softmax(logits).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def mixture_logprobs(student_logprobs: Tensor, teacher_logprobs: Tensor, alpha: float) -> Tensor:
    """log p~ with p~ = alpha p + (1 - alpha) q (paper, equation 4, teacher-mixed sampling)."""
    if alpha == 0:
        return student_logprobs
    if alpha == 1:
        return teacher_logprobs
    return torch.logaddexp(teacher_logprobs + math.log(alpha), student_logprobs + math.log1p(-alpha))


def importance_weights(student_logprobs: Tensor, teacher_logprobs: Tensor, alpha: float) -> Tensor:
    """w_t = q(y_t) / p~(y_t), at most 1 / (1 - alpha); no gradient. [B, T] -> [B, T]."""
    if alpha == 0:
        return torch.ones_like(student_logprobs)
    with torch.no_grad():
        return torch.exp(student_logprobs - mixture_logprobs(student_logprobs, teacher_logprobs, alpha))


def prefix_weights(token_weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Exact per-decision weights from token weights q/p~.

    Returns (single, reward), both [B, T]: the product over s < t, which the single-step part at t carries, and over
    s <= t, which the reward r_t carries inside the long part. Positions outside the mask do not enter the products.
    """
    weights = torch.where(mask, token_weights, torch.ones_like(token_weights))
    reward = weights.cumprod(dim=-1)
    single = torch.cat([torch.ones_like(reward[..., :1]), reward[..., :-1]], dim=-1)
    return single, reward


def token_rewards(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    scaling: float | None = None,
    clip: float | None = None,
) -> Tensor:
    """r_t = log p(y_t) - log q(y_t), divided by `scaling`, then clipped to +-`clip`; exactly 0 outside the mask."""
    rewards = (teacher_logprobs - student_logprobs).detach()
    if scaling is not None:
        rewards = rewards / scaling
    if clip is not None:
        rewards = rewards.clamp(-clip, clip)
    return torch.where(mask, rewards, torch.zeros_like(rewards))


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float, length_norm: bool, skip_current: bool) -> Tensor:
    """Discounted reward to go, [B, T]; exactly 0 outside the mask and where nothing is summed.

    skip_current: sum_{t'>t} gamma^(t'-t-1) r_t', the paper's R_{t+1} (t's own reward is in the single-step part);
    otherwise sum_{t'>=t} gamma^(t'-t) r_t'. length_norm divides by the number of summands, T - t or T - t + 1
    (paper, equation 6; its T - t - 1 is an off-by-one).
    """
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    # A recurrence: gamma ** t' on its own underflows beyond some 2,000 tokens.
    running = torch.zeros_like(rewards[..., 0])
    columns = []
    for t in reversed(range(rewards.shape[-1])):
        following, running = running, rewards[..., t] + gamma * running
        columns.append(following if skip_current else running)
    returns = torch.stack(columns[::-1], dim=-1) if columns else rewards
    count = mask.flip(-1).cumsum(-1).flip(-1) - (mask.long() if skip_current else 0)
    if length_norm:
        returns = returns / count.clamp(min=1)
    return torch.where(mask & (count > 0), returns, torch.zeros_like(returns))


def whiten(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the biased variance.

    mask None: over all cells, padding included, as the published code does. Otherwise over the masked cells, and the
    rest is 0.
    """
    counted = values if mask is None else values[mask]
    if counted.numel() == 0:
        return torch.zeros_like(values)
    whitened = (values - counted.mean()) * torch.rsqrt(counted.var(correction=0) + 1e-8)
    return whitened if mask is None else torch.where(mask, whitened, torch.zeros_like(values))


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_weighted_ratio: bool,
    n_tokens: int | float | Tensor | None = None,
) -> Tensor:
    """`clipped_policy_losses` summed over the mask, a scalar to minimise. Divided by `n_tokens` (None: mask.sum()),
    which must be that of the global mini-batch for the loss not to depend on the split into micro-batches."""
    counted = (torch.where(mask, each, 0.0) for each in (logprobs, old_logprobs, advantages, weights))
    each = clipped_policy_losses(*counted, clip=clip, clip_weighted_ratio=clip_weighted_ratio)
    return torch.where(mask, each, 0.0).sum() / (mask.sum() if n_tokens is None else n_tokens)


def clipped_policy_losses(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip: float,
    clip_weighted_ratio: bool,
) -> Tensor:
    """PPO's clipped surrogate of the long part at each token, to minimise, with ratio = q_now / q_rollout. [...] each.

    clip_weighted_ratio: clipping acts on ratio * w (the paper's Algorithm 1 and the published code); otherwise on
    ratio, with w outside, which leaves the first step unbiased.
    """
    ratio = (logprobs - old_logprobs.detach()).exp()
    weights, advantages = weights.detach(), advantages.detach()
    if clip_weighted_ratio:
        ratio, weights = ratio * weights, torch.ones_like(weights)
    return -weights * torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL[q || p] at each position over the whole vocabulary, differentiated through q. [..., V] -> [...]."""
    return divergences.reverse_kl(log_softmax(student_logits), log_softmax(teacher_logits))


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """- sum_v p(v) log q(v) at each position, gradient to the student only. [..., V] -> [...]."""
    return divergences.cross_entropy(log_softmax(student_logits), log_softmax(teacher_logits))
