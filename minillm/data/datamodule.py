"""Serves prompts, answers and the pre-training corpus to the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import count

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from minillm.common.seeding import seed_for
from minillm.common.types import SupervisedBatch, TrainBatch
from minillm.data import Corpus, PromptSet, rows_at
from minillm.parallel import ALONE


@dataclass(eq=False, repr=False)
class _EndlessDataModule(L.LightningDataModule):
    """Train batch k is a function of the seed and k (`train_batch`), without end; validation is a prompt set.

    Reading starts at the module's counter, the one integer that a checkpoint has to hold for the data: `round` counts
    what a checkpoint can stand between, each `microbatches` batches. `shared_out`: a rank gets its share of the
    batches; else all of them.
    """

    shared_out, microbatches, answers_per_prompt = False, 1, 1
    train_prompts: PromptSet
    val_prompts: PromptSet
    _: KW_ONLY
    seed: int

    def __post_init__(self):
        super().__init__()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Batches(self, self.trainer.lightning_module), batch_size=None)

    def transfer_batch_to_device(self, batch, device: torch.device, dataloader_idx: int):
        return batch.to(device)

    def rows(self, position: int, size: int) -> list[int]:
        return rows_at(seed_for(self.seed, "prompts"), position, size, len(self.train_prompts), self.answers_per_prompt)


class _Batches(IterableDataset):
    def __init__(self, data: _EndlessDataModule, module: L.LightningModule):
        self.data, self.module = data, module

    def __iter__(self) -> Iterator:
        group = self.module.group if self.data.shared_out else ALONE
        return map(self.data.train_batch, count(self.module.round * self.data.microbatches + group.rank, group.size))


@dataclass(eq=False, repr=False)
class DistillationDataModule(_EndlessDataModule):
    """On-policy: a batch is a rollout's worth of prompts, with the corpus blocks of its optimizer steps."""

    corpus: Corpus | None
    _: KW_ONLY
    rollouts: int
    answers_per_prompt: int = 1
    steps_per_rollout: int
    corpus_batch_size: int

    def train_batch(self, k: int) -> TrainBatch:
        prompts, corpus = self.train_prompts, None
        rows = self.rows(k * self.rollouts, self.rollouts)
        if self.corpus is not None:
            n_steps, size = self.steps_per_rollout, self.corpus_batch_size
            flat = self.corpus.batch(seed_for(self.seed, "corpus"), k, n_steps * size)
            corpus = flat.view(n_steps, size, -1)
        return TrainBatch(prompts.batch(rows, index=k, with_references=prompts.has_references), corpus)


@dataclass(eq=False, repr=False)
class SupervisedDataModule(_EndlessDataModule):
    """Given answers: a batch is one of the `microbatches` of an optimizer step, rows of similar length together."""

    shared_out = True
    _: KW_ONLY
    minibatch_size: int
    microbatches: int

    def train_batch(self, k: int) -> SupervisedBatch:
        prompts, (step, part) = self.train_prompts, divmod(k, self.microbatches)
        rows = self.rows(step * self.minibatch_size, self.minibatch_size)
        rows.sort(key=lambda row: len(prompts.prompt_ids[row]) + len(prompts.reference_ids[row]))
        size = self.minibatch_size // self.microbatches
        return SupervisedBatch(
            prompts.batch(rows[part * size : (part + 1) * size], index=step, with_references=True),
            n_tokens=sum(len(prompts.reference_ids[row]) for row in rows),
        )
