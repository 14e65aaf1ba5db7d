"""Serves prompts, answers and the pre-training corpus to the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from minillm.common.seeding import seed_for
from minillm.common.types import SupervisedBatch, TrainBatch
from minillm.data import Corpus, PromptSet, rows_at
from minillm.parallel import ALONE


class _EndlessDataModule(L.LightningDataModule):
    """Train batch k is a function of the seed and k (`train_batch`), without end; validation is a prompt set.

    Reading starts at the module's counter, the one integer that a checkpoint has to hold for the data: `round` counts
    what a checkpoint can stand between, each `per_round` batches. `shared_out`: a rank gets its share of the batches;
    else all of them.
    """

    shared_out = False

    def __init__(self, train_prompts: PromptSet, val_prompts: PromptSet, seed: int, per_round: int = 1):
        super().__init__()
        self.train_prompts, self.val_prompts = train_prompts, val_prompts
        self.seed, self.per_round = seed, per_round

    def train_dataloader(self) -> DataLoader:
        module = self.trainer.lightning_module
        group = module.group if self.shared_out else ALONE
        numbers = _Numbers(lambda: module.round * self.per_round + group.rank, group.size)
        return DataLoader(_Batches(self.train_batch), batch_size=None, sampler=numbers)

    def transfer_batch_to_device(self, batch, device: torch.device, dataloader_idx: int):
        return batch.to(device)


class DistillationDataModule(_EndlessDataModule):
    """On-policy: a batch is a rollout's worth of prompts, with the corpus blocks of its optimizer steps."""

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
        super().__init__(train_prompts, val_prompts, seed)
        self.corpus = corpus
        self.rollouts, self.steps_per_rollout, self.corpus_batch_size = rollouts, steps_per_rollout, corpus_batch_size

    def train_batch(self, k: int) -> TrainBatch:
        prompts = self.train_prompts
        rows = rows_at(seed_for(self.seed, "prompts"), k * self.rollouts, self.rollouts, len(prompts))
        corpus = None
        if self.corpus is not None:
            n_steps, size = self.steps_per_rollout, self.corpus_batch_size
            flat = self.corpus.batch(seed_for(self.seed, "corpus"), k, n_steps * size)
            corpus = flat.view(n_steps, size, -1)
        return TrainBatch(prompts.batch(rows, index=k, with_references=prompts.has_references), corpus)


class SupervisedDataModule(_EndlessDataModule):
    """Given answers: a batch is one of the `microbatches` of an optimizer step, rows of similar length together."""

    shared_out = True

    def __init__(
        self, train_prompts: PromptSet, val_prompts: PromptSet, *, minibatch_size: int, microbatches: int, seed: int
    ):
        super().__init__(train_prompts, val_prompts, seed, per_round=microbatches)
        self.minibatch_size, self.microbatches = minibatch_size, microbatches

    def train_batch(self, k: int) -> SupervisedBatch:
        prompts, (step, part) = self.train_prompts, divmod(k, self.microbatches)
        first = step * self.minibatch_size
        rows = rows_at(seed_for(self.seed, "prompts"), first, self.minibatch_size, len(prompts))
        rows.sort(key=lambda row: len(prompts.prompt_ids[row]) + len(prompts.reference_ids[row]))
        size = self.minibatch_size // self.microbatches
        return SupervisedBatch(
            prompts.batch(rows[part * size : (part + 1) * size], index=step, with_references=True),
            n_tokens=sum(len(prompts.reference_ids[row]) for row in rows),
        )


class _Batches(Dataset):
    def __init__(self, make):
        self.make = make

    def __getitem__(self, k: int):
        return self.make(k)


class _Numbers(Sampler):
    """first, first + step, ... without end; `first` is asked when the trainer starts reading."""

    def __init__(self, first, step: int):
        self.first, self.step = first, step

    def __iter__(self) -> Iterator[int]:
        return count(self.first(), self.step)
