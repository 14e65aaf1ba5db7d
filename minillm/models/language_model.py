"""A stock causal language model seen as hidden states and a linear head.

Axes: B rows, S positions, K columns of the cache in use, H width, V shared vocabulary, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from minillm import parallel
from minillm.common.errors import ModelError, first_line
from minillm.models.architecture import body_of, decoder_layers
from minillm.models.families import exact_length, probe_length, text_config, too_long, unsupported, windows
from minillm.models.gap import LogitGap
from minillm.models.head import Head
from minillm.models.kv_cache import NoCache, RollingCache
from minillm.models.replay import Pool, ReplayedSteps, Step, capture


class _Trunk(nn.Module):
    """From ids to hidden states. It owns the head too: of sharded weights, a call gathers those outside of the layers,
    and they stay until the backward pass."""

    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network

    def forward(self, **inputs):
        return body_of(self.network)(**inputs)


class LanguageModel:
    """Gives hidden states and logits of a transformers model without touching its code.

    A plain object, not a module, so that a teacher never lands in a checkpoint. `n_vocab` cuts the head to the rows
    that student and teacher share, before any softmax. `compile` sends scoring and updates through torch.compile; it
    needs a C++ compiler, and time for every new shape.
    """

    served = False  # its body is in another process, see `ServedTeacher`
    exact = True  # it gives its whole distribution at each token, see `VllmTeacher`

    def __init__(self, network: PreTrainedModel, n_vocab: int | None = None, compile: bool = False):
        self.network = network
        self._trunk, self._body = _Trunk(network), body_of(network)
        self.n_vocab = n_vocab or network.get_output_embeddings().weight.shape[0]
        # Layer by layer, so that masks are made outside: while it is traced, transformers does without no mask.
        _, layers = decoder_layers(network)
        self._layers = {layer: torch.compile(layer._call_impl) if compile else None for layer in layers}
        self.longest, self.windows = exact_length(network.config), windows(network.config)
        self.replay, self._pool = True, Pool()
        self.offload = False
        self._gathered = False
        self.split = parallel.ALONE  # the devices that share the layers of these rows

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def quantised(self) -> bool:
        return getattr(self.network, "is_quantized", False)

    def frozen(self) -> LanguageModel:
        """Switch to eval mode and freeze all weights, as for a teacher."""
        self.network.requires_grad_(False).eval()
        return self

    def body(self) -> list[Tensor]:
        """Weights and buffers that the head does not need (tied embeddings belong to the head)."""
        kept = {id(each) for each in self.network.get_output_embeddings().parameters()}
        return [each for each in (*self.network.parameters(), *self.network.buffers()) if id(each) not in kept]

    @contextmanager
    def body_away(self) -> Iterator[None]:
        """With `offload`, keep the body on the CPU within this context; only the head can be used."""
        home = self.device
        moved = self.body() if self.offload and home.type != "cpu" else []
        for each in moved:
            each.data = each.data.to("cpu")
        try:
            yield
        finally:
            for each in moved:
                each.data = each.data.to(home)

    def share_out(self, mesh: parallel.DeviceMesh, *, keep_head: bool, cpu_offload: bool, half: bool = False) -> None:
        """Shard the weights, see `parallel.shard`. keep_head: embeddings and head stay whole, to be used without the
        body."""
        ends = (self.network.get_input_embeddings(), self.network.get_output_embeddings())
        whole = [each for end in ends for each in end.parameters()] if keep_head else []
        _, layers = decoder_layers(self.network)
        parallel.shard(self._trunk, layers, mesh, whole=whole, cpu_offload=cpu_offload, half=half)
        self.replay, self.split = False, parallel.tensor_group(mesh)
        with torch.no_grad():  # FSDP2 wants the first call to be one of the whole, and decoding makes none
            self.hidden(torch.zeros(1, 1, dtype=torch.long, device=mesh.device_type))
        self._trunk.reshard()

    def reduce_gradients(self, now: bool) -> None:
        """Of sharded weights, see `parallel.reduce_gradients`."""
        parallel.reduce_gradients(self._trunk, now)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather sharded weights within this context, see `parallel.gathered`; may be entered twice."""
        outer, self._gathered = self._gathered, True
        try:
            with nullcontext() if outer else parallel.gathered(self._trunk):
                yield
        finally:
            self._gathered = outer

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Eval mode within this context: layers that recompute activations drop the cache in training mode."""
        training = self.network.training
        self.network.eval()
        for layer in self._layers:  # in decoding shapes change with every token
            layer._compiled_call_impl = None
        try:
            yield
        finally:
            self.network.train(training)

    def head(self, temperature: float = 1.0) -> Head:
        """The output layer, cut to the shared vocabulary."""
        layer, config = self.network.get_output_embeddings(), text_config(self.network.config)
        weight, bias = layer.weight, layer.bias
        if self.n_vocab < len(weight):  # else no slice: its gradient would be copied into a second one
            weight, bias = weight[: self.n_vocab], None if bias is None else bias[: self.n_vocab]
        return Head(
            weight,
            bias,
            scale=getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1),
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature=temperature,
        )

    def hidden(self, ids_BS: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states [B, S, H] of rows that begin at column 0. Padding after a row's end needs no mask:
        attention looks back only. Raises ModelError, see `check_length`."""
        self.check_length(ids_BS.shape[1] + (0 if cache is None else cache.get_seq_length()))
        if cache is not None:
            return self._body(input_ids=ids_BS, past_key_values=cache, use_cache=True).last_hidden_state
        for layer, compiled in self._layers.items():
            layer._compiled_call_impl = compiled  # another LanguageModel of this network may not compile
        return self._trunk(input_ids=ids_BS, past_key_values=NoCache(), use_cache=False).last_hidden_state

    def states(self, ids_BS: Tensor, state_N: Tensor, token_N: Tensor | None = None) -> Tensor:
        """Last hidden states [N, H] at these places of [B * S], see `hidden`. token_N: the tokens that follow, which
        only a `VllmTeacher` reads."""
        return self.hidden(ids_BS).flatten(0, 1)[state_N]

    def check_length(self, n_tokens: int) -> None:
        """Raises ModelError: rows of so many tokens would not be computed each by itself, see `exact_length`."""
        if self.longest is not None and n_tokens > self.longest:
            raise ModelError(f"rows of {n_tokens} tokens: {too_long(self.network.config, n_tokens)}")

    def _plain_mask(self, cache: RollingCache) -> bool:
        """Whether attention takes a mask as it is; else transformers makes its own at each step."""
        short = not self.windows or cache.longest <= self.windows[0]
        return self._body.config._attn_implementation == "sdpa" and short

    def next_hidden(self, ids_B: Tensor, starts_B: Tensor, cache: RollingCache) -> Tensor:
        """Hidden states [B, H] of one more token a row; `starts_B` is `cache.starts` as a tensor."""
        mask = None
        if not cache.even:
            mask = torch.arange(cache.first, cache.end + 1, device=ids_B.device) >= starts_B.unsqueeze(-1)
            mask = mask[:, None, None] if self._plain_mask(cache) else mask
        hidden_BH = self._one_more(ids_B, mask, cache.end - starts_B, cache)
        cache.advance()
        return hidden_BH

    def steps(self, cache: RollingCache) -> Step:
        """`next_hidden` of this cache; on a GPU replayed from CUDA graphs, see `ReplayedSteps`, unless weights are
        sharded or quantised."""
        plain = partial(self.next_hidden, cache=cache)
        if self.device.type != "cuda" or not self.replay or not self._plain_mask(cache) or self.quantised:
            return plain
        return ReplayedSteps(self, cache, plain, partial(capture, pool=self._pool))

    def any_next_hidden(self, ids_B: Tensor, cache: RollingCache, starts_B: Tensor, column: Tensor) -> Tensor:
        """As `next_hidden`, within `cache.window`, at the column that the tensor names; the cache does not advance."""
        columns_K = torch.arange(cache.seen.start, cache.seen.stop, device=ids_B.device)
        mask_BK = (columns_K >= starts_B.unsqueeze(-1)) & (columns_K <= column)
        return self._one_more(ids_B, mask_BK[:, None, None], column - starts_B, cache)

    def _one_more(self, ids_B: Tensor, mask: Tensor | None, positions_B: Tensor, cache: RollingCache) -> Tensor:
        output = self._body(
            input_ids=ids_B.unsqueeze(-1),
            attention_mask=mask,
            position_ids=positions_B.unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    @torch.no_grad()
    def verify(self) -> None:
        """Compare with the network's own logits, on whole rows and on a decoding step of two rows of unequal length,
        one of them longer than every window of at most 256 tokens.

        Raises:
            ModelError: the family computes its logits or its attention in a way this class does not know.
        """
        if why := unsupported(self.network.config):
            raise ModelError(why)
        length = probe_length(self.network.config)
        ids_S = torch.arange(length, device=self.device).remainder(self.n_vocab)
        lengths = [length - 1, 2]  # of what is cached; the token after it is new
        try:
            own_SV = self.network(input_ids=ids_S.unsqueeze(0), use_cache=False).logits[0, :, : self.n_vocab]
            ours_SV = self.head()(self.hidden(ids_S.unsqueeze(0))[0])
            with self.caching():
                next_BV = self.head().columns(self._step_after(ids_S, lengths)).T
        except Exception as error:  # whatever a family's code raises that takes neither these masks nor this cache
            raise ModelError(
                f"{self._type}: rows of unequal length cannot be decoded together ({first_line(error)}); try "
                "model.attention=eager, or use another student or teacher"
            ) from error
        self._compare("logits from hidden states and head", own_SV, ours_SV)
        self._compare("logits after a decoding step", own_SV[lengths], next_BV)

    def _step_after(self, ids_S: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states [B, H] of the token that follows the first `lengths` ones of each row."""
        cache = RollingCache(len(lengths), max(lengths), 1, refills=False)
        for length in lengths:
            prompt = DynamicCache()
            self.hidden(ids_S[None, :length], prompt)
            cache.admit(prompt, [length])
        return self.next_hidden(ids_S[lengths], torch.tensor(cache.starts, device=self.device), cache)

    @property
    def _type(self) -> str:
        return self.network.config.model_type

    def _compare(self, what: str, own_NV: Tensor, ours_NV: Tensor) -> None:
        if not own_NV.isfinite().all():
            raise ModelError(
                f"{self.network.name_or_path or self._type}: its logits are not finite (NaN or infinity) in "
                f"{own_NV.dtype}; use another checkpoint, or a wider dtype such as float32"
            )
        # 8-bit products round their inputs by the largest in the batch, so they count as a half type.
        exact = own_NV.dtype in (torch.float32, torch.float64) and not self.quantised
        # Rounding goes either way; what goes one way (`bias`) is another model.
        most_error, most_bias = (1e-3, 1e-3) if exact else (5e-2, 2e-2)
        error = ((own_NV - ours_NV).abs().max() / own_NV.abs().max().clamp(min=1)).item()
        bias = LogitGap.of(ours_NV, own_NV).bias
        if not (error <= most_error and bias <= most_bias):
            raise ModelError(
                f"{self._type}: {what} differ from the model's own by {error:.2g}, wanted at most {most_error}, and "
                f"are larger or smaller by {bias:.2g}, wanted at most {most_bias}. This family is not supported"
            )
