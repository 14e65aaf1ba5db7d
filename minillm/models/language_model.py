"""A stock causal language model seen as hidden states and a linear head.

Axes: B rows, S positions (new ones when a cache is given), K all positions seen so far, H width, V shared vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from minillm.errors import ModelError


class LanguageModel:
    """Gives hidden states and logits of a transformers model without touching its code.

    A plain object: holding one does not register the network as a child module, so a teacher never lands in a
    checkpoint. `n_vocab` cuts the head to the vocabulary rows that student and teacher share, before any softmax.
    """

    def __init__(self, network: PreTrainedModel, n_vocab: int | None = None):
        self.network = network
        self.n_vocab = n_vocab or network.get_output_embeddings().weight.shape[0]
        config = network.config
        # Granite divides the logits, Cohere multiplies them, Gemma caps them; other families leave them alone.
        self._scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self._softcap = getattr(config, "final_logit_softcapping", None)

    @property
    def device(self) -> torch.device:
        return self.network.device

    def frozen(self) -> LanguageModel:
        """In eval mode and without gradients, as a teacher."""
        self.network.requires_grad_(False).eval()
        return self

    def hidden(self, ids_BS: Tensor, mask_BK: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states [B, S, H] of the new ids; `mask_BK` covers cached and new positions.

        Positions are counted over the mask, so left padding changes no number.
        """
        position_BK = (mask_BK.long().cumsum(-1) - 1).clamp(min=0)
        output = self.network.base_model(
            input_ids=ids_BS,
            attention_mask=mask_BK.long(),
            position_ids=position_BK[:, -ids_BS.shape[1] :],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V], scaled and capped as the family does."""
        head: nn.Linear = self.network.get_output_embeddings()
        weight = head.weight[: self.n_vocab]
        if hidden.device.type == "cpu" and hidden.dim() == 2 and len(hidden) <= 64 and not torch.is_grad_enabled():
            # A skinny product is some 3 times as fast this way round on a CPU.
            logits = (weight @ hidden.T).T.contiguous()
        else:
            logits = hidden @ weight.T
        if head.bias is not None:
            logits = logits + head.bias[: self.n_vocab]
        if self._scale != 1:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def verify_head(self) -> None:
        """Compare with the network's own logits on four tokens.

        Raises:
            ModelError: the family computes its logits in a way that this class does not know.
        """
        ids = torch.arange(4, device=self.device).remainder(self.n_vocab).unsqueeze(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        own = self.network(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[..., : self.n_vocab]
        ours = self.logits(self.hidden(ids, mask))
        tolerance = 1e-3 if own.dtype in (torch.float32, torch.float64) else 5e-2
        error = ((own - ours).abs().max() / own.abs().max().clamp(min=1)).item()
        if not error <= tolerance:
            raise ModelError(
                f"{self.network.config.model_type}: logits from hidden states and head differ from the model's own by "
                f"{error:.2g}; wanted at most {tolerance}. This family is not supported: use another student or teacher"
            )
