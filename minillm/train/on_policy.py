"""On-policy distillation: rollouts from the (mixed) student, then inner epochs of the reverse-KL objective with L_PT.

One training_step is one rollout with all its optimizer steps, so that a batch boundary is a rollout boundary: a
checkpoint needs weights, optimizer and three integers. All randomness is a function of (seed, round, row).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.profiler import record_function

from minillm.common.machine import Phases
from minillm.common.seeding import seed_for
from minillm.common.types import Experience, LossOutput, Rollout, TrainBatch
from minillm.models import LanguageModel, Pair
from minillm.objectives import CrossEntropy, Objective, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss, Side
from minillm.rollout import Sampler, prepared, with_teacher
from minillm.rollout.micro_batch import MicroBatch, micro_batches
from minillm.train.figures import Watched, log_ratio, rollout_figures
from minillm.train.finite import Concerned
from minillm.train.joining import joined
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.start import SupervisedStart
from minillm.train.student import TrainingModule


class OnPolicyDistillation(TrainingModule):
    """Student rollout, teacher logits, reverse KL with the pre-training regulariser (paper, Algorithm 1).

    The student is the only child module: the teacher is a plain object and never lands in a checkpoint. `round` counts
    training batches, `start_step` and `step` the optimizer steps of the supervised start and of MiniLLM.
    """

    title, stages, at_boundary = "MiniLLM", ("raw", "start", "end"), True

    def __init__(
        self,
        pair: Pair,
        objective: Objective,
        sampler: Sampler,
        regulariser: PretrainLoss,
        linear_loss: LinearLoss,
        optim: Optim,
        regime: OnPolicy,
        start: SupervisedStart,
        seed: int,
    ):
        super().__init__(pair, linear_loss, optim)
        self.automatic_optimization = False
        self.objective, self.sampler, self.regulariser = objective, sampler, regulariser
        self.regime, self.start, self.seed = regime, start, seed
        self.round = self.start_step = 0
        self.phases = Phases(self.device)

    @property
    def in_start(self) -> bool:
        return self.start_step < self.start.steps

    @property
    def n_steps(self) -> int:
        return self.regime.max_steps

    @property
    def counts(self) -> dict[str, int]:
        return {"steps": self.step, "start_steps": self.start_step, "rollouts": self.round}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["minillm"] = {"round": self.round, "start_step": self.start_step, "step": self.step}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        for name, value in checkpoint["minillm"].items():
            setattr(self, name, value)

    def training_step(self, batch: TrainBatch, batch_idx: int) -> None:
        self.student.train()  # dropout is off in the config
        self.phases = Phases(self.device)
        self.metrics = self._start_round(batch) if self.in_start else self._distill_round(batch)
        self.round = batch.prompts.index + 1
        if self.step >= self.regime.max_steps:
            self.trainer.should_stop = True

    # -- phase 0: supervised start ------------------------------------------------------------------------------

    def _start_round(self, batch: TrainBatch) -> dict[str, float]:
        mine = self.group.share(range(len(batch.prompts)))
        with self.whole_weights():
            with self.phases("rollout"):
                answers = self.start.answers(
                    batch.prompts,
                    self.pair,
                    self.sampler,
                    self.seed,
                    rows=mine,
                    keep_hidden=self._keep,
                    interrupt=self.interrupt,
                )
            with self.phases("score"):
                if self.start.kd_ratio > 0:
                    answers = self._with_teacher(answers)
        self.stop_if_asked()  # nothing has changed since the round began
        answers = joined(answers, batch.prompts, self.group)
        sums, own, n_steps = defaultdict(float), defaultdict(float), 0
        for rows in torch.arange(len(answers)).split(self.start.minibatch_size):
            if not self.in_start:
                break
            with self.phases("update"):
                minibatch = answers.rows(rows.to(self.device))
                losses = self._start_gradients(minibatch)
                rate = self.start.rate(self.start_step)
                norm = self._update(rate, losses, minibatch, batch.prompts.records, rows)
                if norm is not None:
                    _add(sums, losses)
                    _add(own, {"optim/grad_norm": norm})
            self.start_step += 1
            n_steps += 1
        if not self.in_start:
            # MiniLLM begins with a fresh optimizer, as from the checkpoint of a separate supervised run.
            self.optimizers().optimizer.state.clear()
        means = _means(self.group.total(sums) | own, n_steps - self.finite.skipped)
        return means | self.finite.metrics() | self.phases.metrics()

    def _start_gradients(self, minibatch: Rollout) -> dict[str, Tensor]:
        objective, normaliser = CrossEntropy(self.start.kd_ratio), minibatch.response_mask_BR.sum()
        sums = defaultdict(float)
        for micro, factor in self.my_share(self._micro_batches(minibatch)):
            output = self._gradients(objective, micro, normaliser, factor)
            _add(sums, {"start/loss": output.loss})
        return sums

    # -- MiniLLM --------------------------------------------------------------------------------------------------

    def rollout(self, batch: TrainBatch) -> Rollout:
        """Answers from p~ = alpha p + (1 - alpha) q, with both models' log-probs and the teacher's hidden states."""
        mine = self.group.share(range(len(batch.prompts)))
        seeds = [seed_for(self.seed, "rollout", batch.prompts.index, row) for row in mine]
        ends = dict(stop_ids=self.pair.stop_ids, pad_id=self.pair.pad_id, keep_hidden=self._keep)
        ends |= dict(interrupt=self.interrupt)
        with self.whole_weights():
            with self.phases("rollout"):
                prompts = batch.prompts.rows(mine)
                rollout = self.sampler.rollout(self.model, self.pair.teacher, prompts, seeds, **ends)
            with self.phases("score"):
                rollout = self._with_teacher(rollout)
        return joined(rollout, batch.prompts, self.group)

    def _distill_round(self, batch: TrainBatch) -> dict[str, float]:
        rollout = self.rollout(batch)
        self.stop_if_asked()  # nothing has changed since the round began
        experience = prepared(rollout, self.objective)
        self.finite.look(self, experience, batch.prompts.records)
        sums, own, n_steps = defaultdict(float), defaultdict(float), 0
        gaps: list[Tensor] = []
        with self.phases("update"), self.pair.teacher.body_away():
            for epoch in range(self.regime.inner_epochs):
                generator = torch.Generator().manual_seed(seed_for(self.seed, "inner", batch.prompts.index, epoch))
                for rows in torch.randperm(len(rollout), generator=generator).split(self.regime.minibatch_size):
                    if self.step >= self.regime.max_steps:
                        break  # the last rollout is cut at max_steps
                    minibatch = experience.rows(rows.to(self.device))
                    losses = self._policy_gradients(minibatch, gaps if n_steps == 0 else None)
                    if self.regulariser.on:
                        losses |= self._corpus_gradients(batch.corpus_SML[n_steps])
                    rate = self.optim.rate(self.step, self.regime.max_steps)
                    norm = self._update(rate, losses, minibatch, batch.prompts.records, rows)
                    if norm is not None:
                        _add(sums, losses)
                        _add(own, {"optim/grad_norm": norm, "optim/learning_rate": rate})
                    self.step += 1
                    n_steps += 1
        means = _means(self.group.total(sums) | own, n_steps - self.finite.skipped)
        figures = rollout_figures(rollout, self.pair.stop_ids, self.phases.seconds["rollout"])
        figures |= log_ratio(gaps, self.group)
        return means | self.finite.metrics() | figures | self.phases.metrics()

    def _policy_gradients(self, minibatch: Experience, gaps: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Add the gradients of a mini-batch. `gaps` gets log q(y) now minus log q(y) at sampling, [N] at a time."""
        normaliser, local = self.objective.normaliser(minibatch.response_mask_BR), self.objective.per_micro_batch
        micros = self._micro_batches(minibatch, balanced=not local)
        sums = defaultdict(float)
        for micro, factor in self.my_share(micros, last=not self.regulariser.on):
            if local:
                normaliser = torch.tensor(len(micro) * len(micros))
            objective = self.objective if gaps is None or not factor else Watched(self.objective, gaps)
            output = self._gradients(objective, micro, normaliser, factor, minibatch.temperature)
            _add(sums, {"train/loss": output.loss} | {f"train/{k}": v for k, v in output.parts.items()})
        return sums

    def _corpus_gradients(self, blocks_ML: Tensor) -> dict[str, Tensor]:
        n_tokens = blocks_ML[:, 1:].numel()
        sums = defaultdict(float)
        at_once = max(1, self.regime.microbatch_tokens // blocks_ML.shape[1])
        at_once = min(at_once, -(-len(blocks_ML) // self.group.size))
        for ids_ML, factor in self.my_share(blocks_ML.split(at_once)):

            def side(model: LanguageModel, ids_ML=ids_ML) -> Side:
                return Side(model.hidden(ids_ML[:, :-1]).flatten(0, 1), model.head())

            with torch.no_grad():
                teacher = side(self.pair.teacher) if self.regulariser.needs else None
            ids_N = ids_ML[:, 1:].flatten()
            output = self._backward(self.regulariser, side(self.model), teacher, ids_N, {}, n_tokens, factor)
            _add(sums, {"train/pretrain": output.loss})
        return sums

    # -- shared ---------------------------------------------------------------------------------------------------

    @property
    def _keep(self) -> bool:
        return self.regime.teacher_states == "keep"

    def _with_teacher(self, rollout: Rollout) -> Rollout:
        limits = dict(max_tokens=self.regime.microbatch_tokens, keep_hidden=self._keep)
        return with_teacher(rollout, self.pair.teacher, self.linear_loss, **limits)

    def _micro_batches(self, minibatch: Rollout, balanced: bool = True) -> list[MicroBatch]:
        """Micro-batches of the whole mini-batch, the same on every rank."""
        limits = (self.regime.microbatch_tokens, self.regime.microbatch_size)
        return micro_batches(minibatch, *limits, shares=self.group.size if balanced else 1)

    def _gradients(
        self, objective: Objective, micro: MicroBatch, normaliser: Tensor, factor: float, temperature: float = 1.0
    ) -> LossOutput:
        """Add the objective's gradients over the counted tokens of a micro-batch."""
        teacher = None
        if objective.needs and self._keep:
            teacher = Side(micro.take(micro.rollout.teacher_hidden_BRH), self.pair.teacher.head(temperature))
        elif objective.needs:
            with torch.no_grad():
                teacher = micro.side(self.pair.teacher, temperature)
        ids_N = micro.take(micro.rollout.response_ids_BR)
        constants = {name: micro.take(each) for name, each in getattr(micro.rollout, "constants", {}).items()}
        with record_function("update: student"):
            student = micro.side(self.model, temperature)
        return self._backward(objective, student, teacher, ids_N, constants, normaliser, factor)

    def _backward(self, objective, student, teacher, ids_N, constants, normaliser, factor) -> LossOutput:
        with record_function("update: heads and loss"):
            output = self.linear_loss(objective, student, teacher, ids_N, constants, normaliser=normaliser)
        with record_function("update: backward"):
            self.manual_backward(output.loss * factor)
        parts = {name: value * factor for name, value in output.parts.items()}
        return LossOutput(output.loss.detach() * factor, parts)

    def _update(
        self, rate: float, losses: dict[str, Tensor], minibatch: Rollout, records: Tensor, rows: Tensor
    ) -> Tensor | None:
        """Make an optimizer step; returns the norm of the gradients, None where the step was skipped."""
        optimizer = self.optimizers()

        def concerned() -> Concerned:
            return Concerned.of(minibatch, records[rows.to(records.device)])

        with record_function("update: optimizer"):
            self.sum_gradients()
            norm = self.finite.norm(self, optimizer, losses, concerned)
            if norm is not None:
                self.optim.step(optimizer, norm, rate)
        return norm


def _add(sums: dict, values: dict) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value


def _means(sums: dict, n_steps: int) -> dict[str, float]:
    return {name: float(value) / max(1, n_steps) for name, value in sums.items()}
