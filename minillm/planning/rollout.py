"""The memory of a rollout: prompts read, and two steps of decoding with a whole cache, on tensors without data."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from transformers import DynamicCache

from minillm.models import LanguageModel, RollingCache
from minillm.objectives.linear_loss import Side
from minillm.planning.case import Case
from minillm.planning.ledger import HALF, Ledger
from minillm.planning.networks import precision
from minillm.rollout.decoding import prefills
from minillm.rollout.draw import Distribution, draw

CACHES = "caches"


class FakeRollout:
    """A rollout of one rank with its `student` and `teacher`, whose weights are gathered meanwhile where they are in
    parts. Use it under FakeTensorMode.

    Args:
        moments: bytes of the optimizer's moments, which wait for the update.
    """

    def __init__(self, case: Case, models: dict[str, LanguageModel], moments: int):
        self.case, self.models, self.ledger = case, models, Ledger()
        self.ledger.add("optimizer", moments)
        with self.ledger:
            for name, model in models.items():
                self.ledger.claim(model.network.parameters(), name)

    @torch.no_grad()
    def peak(self, rows: int) -> dict[str, int]:
        """Bytes by purpose at the peak of a rollout that decodes `rows` rows at a time."""
        case, ledger = self.case, self.ledger
        with ledger, ExitStack() as whole:
            ledger.restart()
            for model in self.models.values():
                whole.enter_context(model.gathered())
                whole.enter_context(model.caching())
            record = self._record()
            with precision(case.half, cast_once=True):
                self._decode(rows)
            if not case.teacher_decodes:
                with precision(case.half):
                    self._score()
            del record
        return {name: size for name, size in ledger.peak.items() if size}

    def _record(self) -> list[torch.Tensor]:
        """What is kept of this rank's answers. The record of all ranks' answers exists only after the rollout; it is
        counted in the update."""
        case = self.case
        with self.ledger.purpose("teacher's states"):
            record = [torch.zeros(case.local_rollouts, case.answer, dtype=torch.long)]
            if case.keep_states:
                shape = (case.local_rollouts, case.answer, case.teacher.width)
                record.append(torch.zeros(shape, dtype=case.state_dtype))
        return record

    def _decode(self, rows: int) -> None:
        case, ledger = self.case, self.ledger
        models = [model for name, model in self.models.items() if name == "student" or case.teacher_decodes]
        # Prompts of unequal length need a mask.
        lengths, caches, heads = [case.prompt - 1] * (rows - 1) + [case.prompt], [], []
        for model in models:
            head = model.head(case.sampler.temperature)
            with ledger.purpose(HALF):
                heads.append(head.to(torch.bfloat16) if case.half else head)
            cache = RollingCache(rows, case.prompt, case.answer, refills=rows < case.local_rollouts)
            for number, part in enumerate(prefills(lengths)):
                if number < 2:  # the first makes the cache, the second is beside it, others are like it
                    prompt, hidden_BPH = DynamicCache(), None
                    ids_BP = torch.zeros(len(lengths[part]), case.prompt, dtype=torch.long)
                    with ledger.purpose("activations"):
                        hidden_BPH = model.hidden(ids_BP, prompt)
                    ledger.claim((each for layer in prompt.layers for each in (layer.keys, layer.values)), CACHES)
                with ledger.purpose(CACHES):
                    cache.admit(prompt, lengths[part])
            caches.append((cache, hidden_BPH[:1, -1].repeat(rows, 1)))
            del prompt, hidden_BPH
        began = ledger.calls
        for _ in range(2):  # a step's distributions stay until those of the next are there
            with ledger.purpose("loss"):  # as wide as the vocabulary
                parts = [
                    Distribution(head.columns(hidden_BH)) for head, (_, hidden_BH) in zip(heads, caches, strict=True)
                ]
                shares = [1 - case.sampler.alpha, case.sampler.alpha][: len(parts)]
                ids_B, _ = draw(list(zip(parts, shares, strict=True)), torch.zeros(rows, dtype=torch.float64))
            with ledger.purpose("activations"):
                caches = [
                    (cache, model.next_hidden(ids_B, cache, torch.tensor(cache.starts)))
                    for model, (cache, _) in zip(models, caches, strict=True)
                ]
        self.calls = (ledger.calls - began) // 2

    def _score(self) -> None:
        """Run the teacher over a micro-batch of answers, which it scores where it took no part in decoding."""
        case, rows = self.case, self.case.rows
        ids_BS = torch.zeros(rows, case.columns, dtype=torch.long)
        with self.ledger.purpose("activations"):
            hidden_NH = self.models["teacher"].hidden(ids_BS)[:, case.prompt - 1 :].flatten(0, 1)
        with self.ledger.purpose("loss"):
            side = Side(hidden_NH, self.models["teacher"].head())
            case.linear_loss.logprobs(side, torch.zeros(len(hidden_NH), dtype=torch.long))
