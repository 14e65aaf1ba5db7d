"""Are decoding and training one model? The log-probs that decoding stores, against a pass over the same tokens.

Axes: B rows, P prompt and R response positions, N counted tokens, V vocabulary, S positions of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

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
        ModelError: they are two models, with family and cause.
    """
    decoded: list[Tensor] = []

    def observe(name: str, rows_B: Tensor, steps_B: Tensor, logits_VB: Tensor) -> None:
        if not decoded:
            decoded.append(logits_VB.new_zeros(len(prompts), max_new_tokens, len(logits_VB)))
        decoded[0][rows_B, steps_B] = logits_VB.T

    options = dict(
        seeds=seeds,
        # Rows come and go, as in a rollout.
        batch_size=max(1, len(prompts) // 2),
        stop_ids=stop_ids,
        pad_id=pad_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        observe=observe,
    )

    def compare() -> tuple[_Passes, _Found]:
        decoded.clear()
        rollout = decode(model, None, prompts, **options)
        passes = _Passes(model, rollout, decoded[0], max_tokens, temperature)
        return passes, passes.compare(training=training)

    passes, update = compare()
    quantised = getattr(model.network, "is_quantized", False)  # there is no float32 pass of such weights
    if not quantised and update.exceeds(rounding := passes.rounding()):
        if rounding.tokens and has_experts(model.network.config):
            # Rounding may send a token to another expert: rare, and large. In float32 it does not happen.
            with _in_float32(model.network):
                passes, exact = compare()
                if exact.exceeds(LogitGap()):
                    raise ModelError(_describe(model, passes, exact, LogitGap(), training=training))
            return update.summary()
        raise ModelError(_describe(model, passes, update, rounding, training=training))
    return update.summary()


class _Found(LogitGap):
    """A `LogitGap` and [N] log-ratios of the sampled tokens; `ends`: how many tokens a row has up to each of them."""

    def __init__(self):
        super().__init__()
        self.gaps: list[Tensor] = []
        self.ends: list[Tensor] = []

    def exceeds(self, rounding: LogitGap) -> bool:
        within = self.bias <= _BIAS + _TIMES * rounding.bias and self.kl <= _KL + _TIMES * rounding.kl
        return not within  # NaN too

    def summary(self) -> Consistency:
        gap_N = torch.cat(self.gaps)
        return Consistency(gap_N.mean().item(), gap_N.abs().max().item(), len(gap_N))


@dataclass(frozen=True)
class _Passes:
    """One model's passes over a rollout, whose decoding gave the logits [B, R, V]."""

    model: LanguageModel
    rollout: Rollout
    decoded_BRV: Tensor
    max_tokens: int
    temperature: float

    def compare(self, *, training: bool) -> _Found:
        """Decoding against an update's pass."""
        found = _Found()
        for micro in self._micro_batches():
            own_NV, ids_N1 = self._logits(micro, training), micro.take(self.rollout.response_ids_BR).unsqueeze(-1)
            decoded_NV = micro.take(self.decoded_BRV[:, : self.rollout.response_ids_BR.shape[1]])
            found.add(decoded_NV, own_NV)
            logq_N, logp_N = (each.log_softmax(-1).gather(-1, ids_N1).squeeze(-1) for each in (own_NV, decoded_NV))
            found.gaps.append(logq_N - logp_N)
            prompt_B, width = self.rollout.prompt_mask_BP.sum(-1), self.rollout.response_ids_BR.shape[1]
            found.ends.append(prompt_B[micro.token_N // width] + micro.token_N % width)
        return found

    def rounding(self) -> LogitGap:
        """A pass in eval mode against the same one in float32; nothing where it is in float32 or float64 itself."""
        gap, network = LogitGap(), self.model.network
        half = any(each.is_floating_point() and each.dtype.itemsize < 4 for each in network.parameters())
        if not half and not torch.is_autocast_enabled(self.model.device.type):
            return gap
        for micro in self._micro_batches():
            own_NV = self._logits(micro, False)
            with _in_float32(network):
                gap.add(own_NV, self._logits(micro, False))
        return gap

    def _micro_batches(self) -> list[MicroBatch]:
        return micro_batches(self.rollout, self.max_tokens)

    def _logits(self, micro: MicroBatch, training: bool) -> Tensor:
        network = self.model.network
        before = network.training
        network.train(training)
        try:
            return micro.side(self.model, self.temperature).logits()
        finally:
            network.train(before)


def _describe(model: LanguageModel, passes: _Passes, update: _Found, rounding: LogitGap, *, training: bool) -> str:
    """What is apart, by how much, and why."""
    gap_N, ends_N = torch.cat(update.gaps), torch.cat(update.ends)
    odd_N = gap_N.abs() > gap_N.abs().max() / 10
    first_odd = int(ends_N[odd_N].min())  # tokens of a row, up to the first that is wrong
    if training and not passes.compare(training=False).exceeds(rounding):
        cause = "its training mode computes something else than its eval mode, such as noise that is not turned off"
    elif (ends_N < first_odd).sum() > len(ends_N) / 10:
        widths = f" (its windows: {', '.join(map(str, model.windows))} tokens)" if model.windows else ""
        cause = f"with cached keys and values it attends to something else from token {first_odd} of a row on{widths}"
    elif update.residual < update.bias / 2:
        cause = f"decoding multiplies its logits by {update.slope:.3f}"
    else:
        cause = "with cached keys and values it computes something else than on whole rows"
    return (
        f"{model.network.config.model_type}: decoding and training are two models. With unchanged weights the "
        f"log-probs of {len(gap_N)} sampled tokens differ by {gap_N.mean():+.2g} nats on average and "
        f"{gap_N.abs().max():.2g} at most; slope of the logits {update.slope:.4f}, wanted 1 within "
        f"{_BIAS + _TIMES * rounding.bias:.2g}; KL "
        f"{update.kl:.2g}, wanted at most {_KL + _TIMES * rounding.kl:.2g}. Cause: {cause}. Use another model, other "
        "limits of length (data.max_prompt_tokens, sampler.max_new_tokens), or model.attention=eager"
    )


@contextmanager
def _in_float32(network: nn.Module) -> Iterator[None]:
    """Compute in float32 within this context. A module's weights are float32 while it runs, so that memory grows by
    those of one module only."""
    with ExitStack() as stack:
        stack.enter_context(without_autocast(network))
        for module in network.modules():
            own = dict(module.named_parameters(recurse=False))
            own = {name: each for name, each in own.items() if each.is_floating_point() and each.dtype.itemsize < 4}
            if own:
                stack.enter_context(module.register_forward_pre_hook(partial(_raise, own)))
                stack.enter_context(module.register_forward_hook(partial(_put_back, own), always_call=True))
        yield


def _raise(own: Mapping[str, nn.Parameter], module: nn.Module, *_) -> None:
    """Others in place of the weights, which are left alone: sharded ones do not let their data be exchanged."""
    for name, each in own.items():
        setattr(module, name, nn.Parameter(each.float(), requires_grad=False))


def _put_back(own: Mapping[str, nn.Parameter], module: nn.Module, *_) -> None:
    for name, each in own.items():
        setattr(module, name, each)
