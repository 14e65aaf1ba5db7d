"""Are decoding and training one model? The log-probs that decoding stores, against a pass over the same tokens.

Axes: B rows, R response positions, N counted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from minillm.common.errors import ModelError
from minillm.common.types import PromptBatch, Rollout
from minillm.models import LanguageModel
from minillm.models.families import has_experts
from minillm.models.gap import LogitGap
from minillm.parallel import without_autocast
from minillm.rollout import decode
from minillm.rollout.micro_batch import MicroBatch, micro_batches

_TIMES = 4  # how much further apart decoding and training may be than two types of numbers
_BIAS, _KL = 2e-3, 1e-5  # more than float32 rounds


@dataclass(frozen=True)
class Consistency:
    """`mean`, `largest`: of log q(update) - log q(rollout) over `tokens` sampled tokens, in nats, with unchanged
    weights."""

    mean: float
    largest: float
    tokens: int


@torch.no_grad()
def check_consistency(
    model: LanguageModel,
    prompts: PromptBatch,
    *,
    seeds: list[int],
    stop_ids: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int,
    max_tokens: int,
    temperature: float = 1.0,
    training: bool = True,
) -> Consistency:
    """Decode answers, then score them as an update does: in training mode if the model is trained, else in eval mode.

    Only a difference in one direction is refused. A pass in the same type of numbers differs from a float32 pass by
    rounding; decoding and update may differ by 4 times as much, in the slope of the logits and in mean KL.

    Args:
        prompts: rows of unequal length, one of them as long as the run's. max_tokens: through the model at a time.

    Raises:
        ModelError: they are two models, with the family and by how much.
    """
    ends = dict(stop_ids=stop_ids, pad_id=pad_id, max_new_tokens=max_new_tokens)
    # Rows come and go, as in a rollout.
    options = dict(seeds=seeds, batch_size=max(1, len(prompts) // 2), temperature=temperature, **ends)

    def logits(micro: MicroBatch, training: bool) -> Tensor:
        before = model.network.training
        model.network.train(training)
        try:
            return micro.side(model, temperature).logits()
        finally:
            model.network.train(before)

    def compare() -> tuple[Rollout, LogitGap, Tensor]:
        """A rollout, how far the logits of its decoding and of an update are apart, and the log-ratio of each token."""
        decoded_BRV = None

        def observe(name: str, rows_B: Tensor, steps_B: Tensor, logits_VB: Tensor) -> None:
            nonlocal decoded_BRV
            if decoded_BRV is None:
                decoded_BRV = logits_VB.new_zeros(len(prompts), max_new_tokens, len(logits_VB))
            decoded_BRV[rows_B, steps_B] = logits_VB.T

        rollout, gap, ratios = decode(model, None, prompts, observe=observe, **options), LogitGap(), []
        for micro in micro_batches(rollout, max_tokens):
            update_NV = logits(micro, training)
            decoded_NV = micro.take(decoded_BRV[:, : rollout.response_ids_BR.shape[1]])
            gap.add(decoded_NV, update_NV)
            ids_N1 = micro.take(rollout.response_ids_BR).unsqueeze(-1)
            logq_N, logp_N = (each.log_softmax(-1).gather(-1, ids_N1).squeeze(-1) for each in (update_NV, decoded_NV))
            ratios.append(logq_N - logp_N)
        return rollout, gap, torch.cat(ratios)

    rollout, gap, ratio_N = compare()
    network, rounding = model.network, LogitGap()
    quantised = getattr(network, "is_quantized", False)  # there is no float32 pass of such weights
    if not quantised and _exceeds(gap, rounding) and (_half(network) or torch.is_autocast_enabled(model.device.type)):
        for micro in micro_batches(rollout, max_tokens):
            own_NV = logits(micro, False)
            with _in_float32(network):
                rounding.add(own_NV, logits(micro, False))
        if _exceeds(gap, rounding) and has_experts(network.config):
            # Rounding may send a token to another expert: rare, and large. In float32 it does not happen.
            rounding = LogitGap()
            with _in_float32(network):
                _, gap, exact_N = compare()
            ratio_N = exact_N if _exceeds(gap, rounding) else ratio_N
    if not quantised and _exceeds(gap, rounding):
        raise ModelError(
            f"{network.config.model_type}: decoding and training are two models. With unchanged weights the log-probs "
            f"of {len(ratio_N)} sampled tokens differ by {ratio_N.mean():+.2g} nats on average and "
            f"{ratio_N.abs().max():.2g} at most; slope of the logits {gap.slope:.3f}, wanted 1 within "
            f"{_BIAS + _TIMES * rounding.bias:.2g}; KL {gap.kl:.2g}, wanted at most {_KL + _TIMES * rounding.kl:.2g}. "
            "Likely causes: noise in the training mode that is not turned off, cached keys and values that miss a "
            "window of attention, or scaled logits. Use another model, other limits of length "
            "(data.max_prompt_tokens, sampler.max_new_tokens), or model.attention=eager"
        )
    return Consistency(ratio_N.mean().item(), ratio_N.abs().max().item(), len(ratio_N))


def _exceeds(gap: LogitGap, rounding: LogitGap) -> bool:
    within = gap.bias <= _BIAS + _TIMES * rounding.bias and gap.kl <= _KL + _TIMES * rounding.kl
    return not within  # NaN too


def _half(module: nn.Module, recurse: bool = True) -> dict[str, Parameter]:
    """The module's weights in less than float32."""
    weights = module.named_parameters(recurse=recurse)
    return {name: each for name, each in weights if each.is_floating_point() and each.dtype.itemsize < 4}


@contextmanager
def _in_float32(network: nn.Module) -> Iterator[None]:
    """Compute in float32 within this context. A module's weights are float32 only while it runs, to save memory. They
    are replaced, not changed: the data of sharded weights cannot be exchanged."""

    def put(weights: dict[str, Parameter], raised: bool, module: nn.Module, *_) -> None:
        for name, each in weights.items():
            setattr(module, name, Parameter(each.float(), requires_grad=False) if raised else each)

    with ExitStack() as stack:
        stack.enter_context(without_autocast(network))
        for module in network.modules():
            if half := _half(module, recurse=False):
                stack.enter_context(module.register_forward_pre_hook(partial(put, half, True)))
                stack.enter_context(module.register_forward_hook(partial(put, half, False), always_call=True))
        yield
