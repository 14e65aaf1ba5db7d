"""A stock causal language model seen as hidden states and a linear head.

Axes: B rows, S positions, K columns of the cache in use, H width, V shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from minillm.errors import ModelError
from minillm.models.head import Head
from minillm.models.kv_cache import RollingCache


class LanguageModel:
    """Gives hidden states and logits of a transformers model without touching its code.

    A plain object: holding one does not register the network as a child module, so a teacher never lands in a
    checkpoint. `n_vocab` cuts the head to the vocabulary rows that student and teacher share, before any softmax.
    `compile` sends passes over whole rows through torch.compile; it needs a C++ compiler, and time for every new shape.
    """

    def __init__(self, network: PreTrainedModel, n_vocab: int | None = None, compile: bool = False):
        self.network = network
        # Whole rows only: in decoding the shapes change with every token.
        self._rows_forward = torch.compile(network.base_model) if compile else network.base_model
        self.n_vocab = n_vocab or network.get_output_embeddings().weight.shape[0]
        # Then attention takes the mask as it is; elsewhere transformers makes its own at each step.
        self._plain_mask = network.config._attn_implementation == "sdpa" and not getattr(
            network.config, "sliding_window", None
        )

        self.offload = False

    @property
    def device(self) -> torch.device:
        return self.network.device

    def frozen(self) -> LanguageModel:
        """In eval mode and without gradients, as a teacher."""
        self.network.requires_grad_(False).eval()
        return self

    def body(self) -> list[Tensor]:
        """Weights and buffers that the head does not need; tied embeddings are the head's."""
        kept = {id(each) for each in self.network.get_output_embeddings().parameters()}
        return [each for each in (*self.network.parameters(), *self.network.buffers()) if id(each) not in kept]

    @contextmanager
    def body_away(self) -> Iterator[None]:
        """With `offload`: the body is on the CPU meanwhile, so that only the head can be used."""
        home = self.device
        moved = self.body() if self.offload and home.type != "cpu" else []
        for each in moved:
            each.data = each.data.to("cpu")
        try:
            yield
        finally:
            for each in moved:
                each.data = each.data.to(home)

    def head(self, temperature: float = 1.0) -> Head:
        """The output layer, cut to the shared vocabulary."""
        layer, config = self.network.get_output_embeddings(), self.network.config
        return Head(
            layer.weight[: self.n_vocab],
            None if layer.bias is None else layer.bias[: self.n_vocab],
            scale=getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1),
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature=temperature,
        )

    def hidden(self, ids_BS: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states [B, S, H] of rows that begin at column 0.

        Padding after a row's end needs no mask: attention looks back only, and nobody reads what comes out there.
        """
        output = self._rows_forward(input_ids=ids_BS, past_key_values=cache, use_cache=cache is not None)
        return output.last_hidden_state

    def next_hidden(self, ids_B: Tensor, cache: RollingCache, starts_B: Tensor) -> Tensor:
        """[B, H] of one more token a row; `starts_B` are `cache.starts` as a tensor."""
        mask = None
        if not cache.even:
            mask = torch.arange(cache.first, cache.end + 1, device=ids_B.device) >= starts_B.unsqueeze(-1)
            mask = mask[:, None, None] if self._plain_mask else mask
        output = self.network.base_model(
            input_ids=ids_B.unsqueeze(-1),
            attention_mask=mask,
            position_ids=(cache.end - starts_B).unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
        )
        cache.advance()
        return output.last_hidden_state[:, -1]

    @torch.no_grad()
    def verify_head(self) -> None:
        """Compare with the network's own logits on four tokens.

        Raises:
            ModelError: the family computes its logits in a way that this class does not know.
        """
        ids = torch.arange(4, device=self.device).remainder(self.n_vocab).unsqueeze(0)
        own = self.network(input_ids=ids, use_cache=False).logits[..., : self.n_vocab]
        ours = self.head()(self.hidden(ids))
        tolerance = 1e-3 if own.dtype in (torch.float32, torch.float64) else 5e-2
        error = ((own - ours).abs().max() / own.abs().max().clamp(min=1)).item()
        if not error <= tolerance:
            raise ModelError(
                f"{self.network.config.model_type}: logits from hidden states and head differ from the model's own by "
                f"{error:.2g}; wanted at most {tolerance}. This family is not supported: use another student or teacher"
            )
