"""Serves prompts and the pre-training corpus to the trainer."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from minillm.data import Corpus, PromptSet, rows_at
from minillm.seeding import seed_for
from minillm.types import TrainBatch


class _Rounds(Dataset):
    """Batch k as a function of the seed and k."""

    def __init__(self, data: DistillationDataModule):
        self.data = data

    def __getitem__(self, k: int) -> TrainBatch:
        data, prompts = self.data, self.data.train_prompts
        rows = rows_at(seed_for(data.seed, "prompts"), k * data.rollouts, data.rollouts, len(prompts))
        corpus = None
        if data.corpus is not None:
            n_steps, size = data.steps_per_rollout, data.corpus_batch_size
            flat = data.corpus.batch(seed_for(data.seed, "corpus"), k, n_steps * size)
            corpus = flat.view(n_steps, size, -1)
        return TrainBatch(prompts.batch(rows, index=k, with_references=prompts.has_references), corpus)


class _CountFrom(Sampler):
    """first, first + 1, ... without end; `first` is asked when the trainer starts reading."""

    def __init__(self, first):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        k = self.first()
        while True:
            yield k
            k += 1


class DistillationDataModule(L.LightningDataModule):
    """Train batches are rollouts' worth of prompts (with corpus blocks), without end; validation is a prompt set.

    Reading starts at the module's counter, the one integer that a checkpoint has to hold for the data.
    """

    def __init__(
        self,
        train_prompts: PromptSet,
        val_prompts: PromptSet,
        corpus: Corpus | None,
        *,
        rollouts: int,
        steps_per_rollout: int,
        corpus_batch_size: int,
        seed: int,
    ):
        super().__init__()
        self.train_prompts, self.val_prompts, self.corpus = train_prompts, val_prompts, corpus
        self.rollouts, self.steps_per_rollout, self.corpus_batch_size = rollouts, steps_per_rollout, corpus_batch_size
        self.seed = seed

    def train_dataloader(self) -> DataLoader:
        counter = _CountFrom(lambda: self.trainer.lightning_module.round)
        return DataLoader(_Rounds(self), batch_size=None, sampler=counter)

    def transfer_batch_to_device(self, batch: TrainBatch, device: torch.device, dataloader_idx: int) -> TrainBatch:
        return batch.to(device)
