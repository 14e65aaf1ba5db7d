"""A model that begins with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.common.errors import ConfigError
from minillm.models.architecture import Architecture
from minillm.models.checkpoint import Attention, load_tokenizer


@dataclass(frozen=True)
class FromScratch:
    """`tokenizer` is a directory or hub id; the weights are a function of `seed`."""

    architecture: Architecture
    tokenizer: str
    seed: int = 0

    def load(
        self, dtype: torch.dtype = torch.float32, attention: Attention = "sdpa"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, on the CPU and with dropout off, and its tokenizer.

        Raises:
            ConfigError: the tokenizer has more tokens than the architecture has rows. ModelError: no tokenizer there.
        """
        tokenizer = load_tokenizer(self.tokenizer)
        if len(tokenizer) > self.architecture.vocabulary:
            raise ConfigError(
                f"architecture.vocabulary={self.architecture.vocabulary}: {self.tokenizer} has {len(tokenizer)} tokens"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.architecture.random_model(attention)
        for parameter in network.parameters():  # not network.to(): that would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
        return network, tokenizer
