"""The student as its own teacher: its moving average, or the student without its adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Parameter
from transformers import Cache, PreTrainedModel

from minillm.models.kv_cache import RollingCache
from minillm.models.language_model import LanguageModel


class Unadapted(LanguageModel):
    """The student without its adapters, as a teacher. It uses the student's network: no second model is in memory."""

    def __init__(self, network: PreTrainedModel, n_vocab: int | None = None):
        super().__init__(network, n_vocab)
        self.replay = False  # no CUDA graphs: they would have to be captured within the context below
        self._adapted = [module for module in network.modules() if isinstance(module, LoraLayer)]

    def hidden(self, ids_BS: Tensor, cache: Cache | None = None) -> Tensor:
        with self._without_adapters():
            return super().hidden(ids_BS, cache)

    def _one_more(self, ids_B: Tensor, mask: Tensor | None, positions_B: Tensor, cache: RollingCache) -> Tensor:
        with self._without_adapters():
            return super()._one_more(ids_B, mask, positions_B, cache)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        for layer in self._adapted:  # not peft's enable_adapters, which would also freeze the adapters
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self._adapted:
                layer._disable_adapters = False


def copy_of(student: PreTrainedModel) -> PreTrainedModel:
    """A copy of the trained weights; the copy and the student share the frozen ones."""
    made = copy.deepcopy(student, {id(each): each for each in student.parameters() if not each.requires_grad})
    made.name_or_path = ""  # it will be no model of a directory
    return made


class MovingAverage:
    """theta_ema <- (1 - rate) theta_ema + rate theta: theta are the trained weights of `student`, theta_ema those of
    `teacher` with the same names, which are changed in place."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, rate: float):
        self.rate, theirs = rate, dict(teacher.named_parameters())
        trained = {name: each for name, each in student.named_parameters() if each.requires_grad}
        self._weights: dict[str, tuple[Parameter, Parameter]] = {
            name: (theirs[name], each) for name, each in trained.items()
        }

    @torch.no_grad()
    def follow(self) -> None:
        for average, now in self._weights.values():
            average.lerp_(now, self.rate)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: average.detach() for name, (average, _) in self._weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, (average, _) in self._weights.items():
            average.copy_(state[name])
