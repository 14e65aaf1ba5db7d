"""On-policy distillation: rollouts from the (mixed) student, then inner epochs of the reverse-KL objective with L_PT.

One training_step is one rollout with all its optimizer steps, so that a batch boundary is a rollout boundary: a
checkpoint needs weights, optimizer and three integers. All randomness is a function of (seed, round, row).
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from minillm.errors import check
from minillm.models import LanguageModel, Pair
from minillm.modules.start import SupervisedStart
from minillm.objectives import MiniLLM, PretrainLoss, mixed_cross_entropy
from minillm.optim import Optim
from minillm.sampling import Sampler
from minillm.scoring import response_hidden, response_logits, with_teacher
from minillm.seeding import seed_for
from minillm.types import Experience, Rollout, TrainBatch


@dataclass(frozen=True)
class OnPolicy:
    """The config group `regime`: sizes of the loop, all global (paper: 256 rollouts, mini-batches of 64, 4 inner
    epochs, 5,000 optimizer steps). `microbatch_size` rows go through the models at a time and change no number."""

    rollouts: int = 256
    minibatch_size: int = 64
    microbatch_size: int = 8
    inner_epochs: int = 4
    max_steps: int = 5000

    def __post_init__(self):
        sizes = ("rollouts", "minibatch_size", "microbatch_size", "inner_epochs", "max_steps")
        check(*((getattr(self, name) > 0, f"{name}={getattr(self, name)}: wanted a positive number") for name in sizes))
        check(
            (
                self.rollouts % self.minibatch_size == 0,
                f"minibatch_size={self.minibatch_size} does not divide rollouts={self.rollouts}; use a divisor",
            )
        )

    @property
    def steps_per_rollout(self) -> int:
        return self.rollouts // self.minibatch_size * self.inner_epochs


class OnPolicyDistillation(L.LightningModule):
    """Student rollout, teacher logits, reverse KL with the pre-training regulariser (paper, Algorithm 1).

    The student is the only child module: the teacher is a plain object and never lands in a checkpoint. `round` counts
    training batches, `start_step` and `step` the optimizer steps of the supervised start and of MiniLLM.
    """

    def __init__(
        self,
        pair: Pair,
        objective: MiniLLM,
        sampler: Sampler,
        regulariser: PretrainLoss,
        optim: Optim,
        regime: OnPolicy,
        start: SupervisedStart,
        seed: int,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student = pair.student
        self.pair = pair
        self.model = LanguageModel(pair.student, pair.n_vocab)
        self.objective, self.sampler, self.regulariser = objective, sampler, regulariser
        self.optim, self.regime, self.start, self.seed = optim, regime, start, seed
        self.round = self.start_step = self.step = 0
        self.metrics: dict[str, float] = {}

    @property
    def in_start(self) -> bool:
        return self.start_step < self.start.steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optim.build(p for p in self.student.parameters() if p.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["minillm"] = {"round": self.round, "start_step": self.start_step, "step": self.step}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        for name, value in checkpoint["minillm"].items():
            setattr(self, name, value)

    def on_train_start(self) -> None:
        if self.step >= self.regime.max_steps:  # a resumed run that was already through
            self.trainer.should_stop = True

    def training_step(self, batch: TrainBatch, batch_idx: int) -> None:
        self.student.train()  # dropout is off in the config
        self.metrics = self._start_round(batch) if self.in_start else self._distill_round(batch)
        self.round = batch.prompts.index + 1
        if self.step >= self.regime.max_steps:
            self.trainer.should_stop = True

    # -- phase 0: supervised start ------------------------------------------------------------------------------

    def _start_round(self, batch: TrainBatch) -> dict[str, float]:
        answers = self.start.answers(batch.prompts, self.pair, self.sampler, self.seed)
        sums, n_steps = defaultdict(float), 0
        for rows in torch.arange(len(answers)).split(self.start.minibatch_size):
            if not self.in_start:
                break
            minibatch = answers.rows(rows.to(self.device))
            n_tokens = minibatch.response_mask_BR.sum()
            for micro in self._micro_batches(minibatch):
                student_NV, teacher_NV = self._logits(micro, with_teacher=self.start.kd_ratio > 0)
                ids_N = micro.response_ids_BR[micro.response_mask_BR]
                output = mixed_cross_entropy(
                    student_NV, teacher_NV, ids_N, kd_ratio=self.start.kd_ratio, n_tokens=n_tokens
                )
                self.manual_backward(output.loss)
                _add(sums, {"start/loss": output.loss.detach()})
            _add(sums, {"optim/grad_norm": self._update(self.start.rate(self.start_step))})
            self.start_step += 1
            n_steps += 1
        if not self.in_start:
            # MiniLLM begins with a fresh optimizer, as from the checkpoint of a separate supervised run.
            self.optimizers().optimizer.state.clear()
        return _means(sums, n_steps)

    # -- MiniLLM --------------------------------------------------------------------------------------------------

    def rollout(self, batch: TrainBatch) -> Rollout:
        """Answers from p~ = alpha p + (1 - alpha) q, with both models' log-probs and the teacher's hidden states."""
        seeds = [seed_for(self.seed, "rollout", batch.prompts.index, row) for row in range(len(batch.prompts))]
        ends = dict(stop_ids=self.pair.stop_ids, pad_id=self.pair.pad_id)
        rollout = self.sampler.rollout(self.model, self.pair.teacher, batch.prompts, seeds, **ends)
        return with_teacher(rollout, self.pair.teacher, batch_size=self.regime.microbatch_size)

    def _distill_round(self, batch: TrainBatch) -> dict[str, float]:
        began = time.perf_counter()
        rollout = self.rollout(batch)
        sampled = time.perf_counter()
        experience = self.objective.prepare(rollout)
        sums, n_steps = defaultdict(float), 0
        for epoch in range(self.regime.inner_epochs):
            generator = torch.Generator().manual_seed(seed_for(self.seed, "inner", batch.prompts.index, epoch))
            for rows in torch.randperm(len(rollout), generator=generator).split(self.regime.minibatch_size):
                if self.step >= self.regime.max_steps:
                    break  # the last rollout is cut at max_steps
                _add(sums, self._policy_gradients(experience.rows(rows.to(self.device))))
                if self.regulariser.on:
                    _add(sums, self._corpus_gradients(batch.corpus_SML[n_steps]))
                rate = self.optim.rate(self.step, self.regime.max_steps)
                _add(sums, {"optim/grad_norm": self._update(rate), "optim/learning_rate": rate})
                self.step += 1
                n_steps += 1
        updated = time.perf_counter()
        times = {"time/rollout": sampled - began, "time/update": updated - sampled}
        return _means(sums, n_steps) | self._rollout_metrics(rollout, times["time/rollout"]) | times

    def _policy_gradients(self, minibatch: Experience) -> dict[str, Tensor]:
        normaliser = self.objective.normaliser(minibatch.response_mask_BR)
        micros = self._micro_batches(minibatch)
        sums = defaultdict(float)
        for micro in micros:
            if self.objective.denominator == "micro_batch":
                normaliser = micro.response_mask_BR.sum() * len(micros)
            output = self.objective.loss(*self._logits(micro), micro, normaliser)
            self.manual_backward(output.loss)
            _add(sums, {"train/loss": output.loss.detach()} | {f"train/{k}": v for k, v in output.parts.items()})
        return sums

    def _corpus_gradients(self, blocks_ML: Tensor) -> dict[str, Tensor]:
        n_tokens = blocks_ML[:, 1:].numel()
        sums = defaultdict(float)
        for ids_ML in blocks_ML.split(self.regime.microbatch_size):
            mask_ML = torch.ones_like(ids_ML, dtype=torch.bool)

            def logits_NV(model: LanguageModel, ids_ML=ids_ML, mask_ML=mask_ML) -> Tensor:
                return model.logits(model.hidden(ids_ML[:, :-1], mask_ML[:, :-1]).flatten(0, 1))

            teacher_NV = None
            if self.regulariser.kd_ratio > 0:
                with torch.no_grad():
                    teacher_NV = logits_NV(self.pair.teacher)
            output = self.regulariser.loss(logits_NV(self.model), teacher_NV, ids_ML[:, 1:].flatten(), n_tokens)
            self.manual_backward(output.loss)
            _add(sums, {"train/pretrain": output.loss.detach()})
        return sums

    # -- shared ---------------------------------------------------------------------------------------------------

    def _micro_batches(self, minibatch: Rollout) -> list[Rollout]:
        """Rows of similar length together, without the columns that none of them uses."""
        order = minibatch.mask_BS.sum(-1).argsort(stable=True)
        return [minibatch.rows(rows).trimmed() for rows in order.split(self.regime.microbatch_size)]

    def _logits(self, micro: Rollout, with_teacher: bool = True) -> tuple[Tensor, Tensor | None]:
        """[N, V] of student and teacher at the counted positions; the teacher's from its kept hidden states."""
        mask_BR = micro.response_mask_BR
        student_NV = response_logits(self.model, response_hidden(self.model, micro), mask_BR)
        if not with_teacher:
            return student_NV, None
        with torch.no_grad():
            return student_NV, response_logits(self.pair.teacher, micro.teacher_hidden_BRH, mask_BR)

    def _update(self, rate: float) -> Tensor:
        optimizer = self.optimizers()
        where = f"rollout {self.round}, step {self.start_step + self.step}"
        return self.optim.step(optimizer, [p for g in optimizer.param_groups for p in g["params"]], rate, where)

    def _rollout_metrics(self, rollout: Rollout, seconds: float) -> dict[str, float]:
        mask_BR = rollout.response_mask_BR
        n_tokens = int(mask_BR.sum())
        gap = (rollout.student_logprobs_BR - rollout.teacher_logprobs_BR)[mask_BR]
        last_B = rollout.response_ids_BR.gather(1, mask_BR.sum(-1, keepdim=True) - 1).squeeze(1)
        stops = torch.tensor(self.pair.stop_ids, device=last_B.device)
        return {
            "rollout/length": n_tokens / len(rollout),
            "rollout/truncated": (~torch.isin(last_B, stops)).float().mean().item(),
            # log q - log p of tokens drawn from the mixture: an estimate that alpha > 0 biases; val/ has the exact one.
            "rollout/reverse_kl_sampled": gap.mean().item(),
            "time/tokens_per_second": n_tokens / seconds,
        }


def _add(sums: dict, values: dict) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value


def _means(sums: dict, n_steps: int) -> dict[str, float]:
    return {name: float(value) / max(1, n_steps) for name, value in sums.items()}
