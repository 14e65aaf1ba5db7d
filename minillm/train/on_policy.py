"""On-policy distillation: rollouts from the (mixed) student, then inner epochs of the objective with L_PT.

One training_step is one rollout with all its optimizer steps, so that a batch boundary is a rollout boundary: a
checkpoint needs weights, optimizer and three integers. All randomness is a function of (seed, round, row).

Axes: B rows of a rollout, S optimizer steps of a round, M corpus blocks, L their length, N tokens.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import record_function

from minillm.common.console import progress
from minillm.common.errors import ConfigError, ModelError
from minillm.common.machine import Phases
from minillm.common.seeding import seed_for
from minillm.common.types import Experience, LossOutput, Rollout, TrainBatch
from minillm.models import LanguageModel, Pair
from minillm.objectives import SPANS, START, CrossEntropy, Objective, PretrainLoss
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import Sampler, answer_logprobs, prepared, with_costs, with_spans, with_teacher
from minillm.rollout.micro_batch import MicroBatch, micro_batches
from minillm.rollout.stored import Stored, joined
from minillm.train.figures import Watched, rollout_figures
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.reward import Reward
from minillm.train.start import SupervisedStart
from minillm.train.student import TrainingModule


class OnPolicyDistillation(TrainingModule):
    """Student rollout, teacher logits, reverse KL with the pre-training regulariser (paper, Algorithm 1).

    The student is the only child module. The teacher is a plain object and is in no checkpoint, unless it is the moving
    average of the student. `round` counts training batches, `start_step` and `step` the optimizer steps of the
    supervised start and of MiniLLM.
    """

    title, stages, at_boundary = "MiniLLM", ("raw", "start", "last"), True

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
        reward: Reward | None = None,
        stored: Stored | None = None,
    ):
        super().__init__(pair, linear_loss, optim)
        self.objective, self.sampler, self.regulariser = objective, sampler, regulariser
        self.regime, self.start, self.seed = regime, start, seed
        self.reward, self.stored = reward or Reward(), stored or Stored(seed=seed)
        self.round = self.start_step = 0
        self.automatic_optimization = False
        if START in objective.needs:  # before a checkpoint is loaded
            self.reference = pair.reference or LanguageModel(copy.deepcopy(pair.student), pair.n_vocab).frozen()
        self.keep_hidden = regime.teacher_states == "keep"
        self._limit = dict(max_tokens=regime.microbatch_tokens)
        self._begin_round()

    def _begin_round(self) -> None:
        self.phases = Phases(self.device)
        # Sums over the optimizer steps that were made: of this rank, and of figures that are the same on all ranks.
        self._losses, self._same, self._n_made = defaultdict(float), defaultdict(float), 0

    @property
    def in_start(self) -> bool:
        return self.start_step < self.start.steps

    @property
    def n_steps(self) -> int:
        return self.regime.max_steps

    @property
    def counts(self) -> dict[str, int]:
        made = -(-self.step // self.regime.steps_per_rollout)  # without the rounds of the start
        return {"steps": self.step, "start_steps": self.start_step, "rollouts": made}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["minillm"] = {"round": self.round, "start_step": self.start_step, "step": self.step}
        checkpoint["replay"] = [vars(each) for each in self.stored.earlier]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        for name, value in checkpoint["minillm"].items():
            setattr(self, name, value)
        self.stored.earlier = [Rollout(**each) for each in checkpoint.get("replay", [])]

    def training_step(self, batch: TrainBatch, batch_idx: int) -> None:
        self.student.train()  # dropout is off in the config
        self._begin_round()
        figures = self._start_round(batch) if self.in_start else self._distill_round(batch)
        sums = self.group.total(self._losses) | self._same
        means = {name: float(value) / max(1, self._n_made) for name, value in sums.items()}
        self.metrics = means | self.finite.metrics() | figures | self.phases.metrics()
        self.round = batch.prompts.index + 1
        if self.step >= self.regime.max_steps:
            self.trainer.should_stop = True

    # -- phase 0: supervised start ------------------------------------------------------------------------------

    def _start_round(self, batch: TrainBatch) -> dict[str, float]:
        mine = self.group.share(range(len(batch.prompts)))
        options = dict(rows=mine, keep_hidden=self.keep_hidden, interrupt=self.interrupt)
        with self.whole_weights():
            with self.phases("rollout"):
                answers = self.start.answers(batch.prompts, self.pair, self.sampler, self.seed, **options)
            with self.phases("score"), self.asking():
                if self.start.kd_ratio > 0:
                    answers = self._with_teacher(answers)
        self.stop_if_asked()  # nothing has changed since the round began
        answers = joined(answers, self.group)
        for rows in torch.arange(len(answers)).split(self.start.minibatch_size):
            if not self.in_start:
                break
            with self.phases("update"), progress(f"Supervised start, step {self.start_step + 1}"):
                rows = rows.to(self.device)
                losses = self._start_gradients(answers.rows(rows))
                self._update(losses, self.start.rate(self.start_step), batch.prompts.records, rows)
            self.start_step += 1
        if not self.in_start:
            # MiniLLM begins with a fresh optimizer, as from the checkpoint of a separate supervised run.
            self.optimizers().optimizer.state.clear()
        return {}

    def _start_gradients(self, minibatch: Rollout) -> dict[str, Tensor]:
        objective, normaliser = CrossEntropy(self.start.kd_ratio), minibatch.response_mask_BR.sum()
        sums = defaultdict(float)
        for micro, factor in self.my_share(self._micro_batches(minibatch)):
            _add(sums, {"start/loss": self._gradients(objective, micro, normaliser, factor)["loss"]})
        return sums

    # -- MiniLLM --------------------------------------------------------------------------------------------------

    def rollout(self, batch: TrainBatch) -> Rollout:
        """Answers from p~ = alpha p + (1 - alpha) q, with both models' log-probs and the teacher's hidden states."""
        stored, prompts = self.stored.choose(batch.prompts), batch.prompts
        mine = self.group.share(range(len(prompts)))
        # A rank without a prompt to answer answers one in vain: the answer says what types and temperature are.
        drawn = [row for row in mine if row not in self.stored.rows] or mine[:1]
        seeds = [seed_for(self.seed, "rollout", prompts.index, row) for row in drawn]
        ends = dict(stop_ids=self.pair.stop_ids, pad_id=self.pair.pad_id)
        options = dict(keep_hidden=self.keep_hidden, interrupt=self.interrupt)
        with self.whole_weights():
            with self.phases("rollout"), self.asking():
                asked = prompts.rows(drawn)
                rollout = self.sampler.rollout(self.model, self.pair.teacher, asked, seeds, **ends, **options)
                lost = (rollout.for_teacher is rollout) != (asked.for_teacher is asked)
                if lost or (rollout.teachers_B is None) != (asked.teachers_B is None):
                    name, what = type(self.sampler).__name__, "the teacher's prompts, or which teacher each row has"
                    raise ConfigError(f"sampler {name}: loses {what}; make rollouts by prompts.answered")
                rollout = replace(rollout, records_B=asked.records)
            with self.phases("score"), self.asking():
                rollout = self._with_teacher(rollout)
                if stored is not None:
                    rollout = self.stored.among(rollout, drawn, stored, mine, self._scored)
                rollout = self._with_costs(rollout)
        rollout = joined(rollout, self.group)
        if not rollout.response_mask_BR.any():
            raise ModelError(
                f"rollout {self.round}: none of its {len(rollout)} answers can be aligned with the teacher. Begin "
                "with a student that writes texts (recipe=start), or use another model.student or model.teacher"
            )
        if self.reward.function is None:
            return rollout
        records = self.trainer.datamodule.train_prompts.records
        return self.reward.added(rollout, records, self.pair, self.stored.answers_per_prompt, self.group)

    def _distill_round(self, batch: TrainBatch) -> dict[str, float]:
        rollout = self.rollout(batch)
        self.stop_if_asked()  # nothing has changed since the round began
        self.stored.keep(rollout)
        experience, records_B = prepared(rollout, self.objective), rollout.records_B
        self.finite.check_rollout(self, experience, records_B)
        watched = Watched(self.device)
        first, self.whole = self.step, False
        with self.phases("update"), progress(f"Updating, step {self.step + 1}"), self.pair.teacher.body_away():
            for epoch in range(self.regime.inner_epochs):
                generator = torch.Generator().manual_seed(seed_for(self.seed, "inner", batch.prompts.index, epoch))
                for rows in torch.randperm(len(rollout), generator=generator).split(self.regime.minibatch_size):
                    if self.step >= self.regime.max_steps:
                        break  # the last rollout is cut at max_steps
                    rows = rows.to(self.device)
                    losses = self._policy_gradients(experience.rows(rows), watched if self.step == first else None)
                    if self.regulariser.on:
                        losses |= self._corpus_gradients(batch.corpus_SML[self.step - first])
                    rate = self.optim.rate(self.step, self.regime.max_steps)
                    self._update(losses, rate, records_B, rows, {"optim/learning_rate": rate})
                    self.step += 1
        self.whole = True
        seconds = self.phases.seconds["rollout"]
        figures = rollout_figures(rollout, self.pair.stop_ids, seconds, self.stored.rows)
        return figures | self.sampler.figures | watched.figures(self.group)

    def _policy_gradients(self, minibatch: Experience, watched: Watched | None = None) -> dict[str, Tensor]:
        """Add the gradients of a mini-batch."""
        normaliser, local = self.objective.normaliser(minibatch.response_mask_BR), self.objective.per_micro_batch
        micros = self._micro_batches(minibatch, balanced=not local)
        sums = defaultdict(float)
        for micro, factor in self.my_share(micros, last=not self.regulariser.on):
            if local:
                normaliser = torch.tensor(len(micro) * len(micros))
            objective = self.objective if watched is None or not factor else watched.of(self.objective)
            found = self._gradients(objective, micro, normaliser, factor, minibatch.temperature)
            _add(sums, {f"train/{name}": value for name, value in found.items()})
        return sums

    def _corpus_gradients(self, blocks_ML: Tensor) -> dict[str, Tensor]:
        n_tokens = blocks_ML[:, 1:].numel()
        sums = defaultdict(float)
        at_once = max(1, self.regime.microbatch_tokens // blocks_ML.shape[1])
        at_once = min(at_once, -(-len(blocks_ML) // self.group.size))
        for ids_ML, factor in self.my_share(blocks_ML.split(at_once)):
            inputs_ML, ids_N, teacher = ids_ML[:, :-1], ids_ML[:, 1:].flatten(), None
            if self.regulariser.needs:
                with torch.no_grad(), self.asking():
                    states_NH = self.pair.teacher.states(inputs_ML, torch.arange(len(ids_N), device=ids_N.device))
                    teacher = Side(states_NH, self.pair.teacher.head())
            student = Side(self.model.hidden(inputs_ML).flatten(0, 1), self.model.head())
            with record_function("update: heads and loss"):
                output = self.linear_loss(self.regulariser, student, teacher, ids_N, normaliser=n_tokens)
            _add(sums, {"train/pretrain": self._backward(output, factor)["loss"]})
        return sums

    # -- shared ---------------------------------------------------------------------------------------------------

    def _with_teacher(self, rollout: Rollout) -> Rollout:
        if SPANS in self.objective.needs:
            return with_spans(rollout, self.model, self.pair, self.linear_loss, **self._limit)
        return with_teacher(rollout, self.pair.teacher, self.linear_loss, keep_hidden=self.keep_hidden, **self._limit)

    def _with_costs(self, rollout: Rollout) -> Rollout:
        rollout = with_costs(rollout, self.model, self.pair.teacher, self.objective, self.linear_loss, **self._limit)
        if self.reference is None:
            return rollout
        start_BR, _ = answer_logprobs(self.reference, rollout, self.linear_loss, **self._limit)
        return replace(rollout, start_logprobs_BR=start_BR)

    def rehearsal(self, answers: Rollout) -> Callable[[], object]:
        experience = prepared(self._with_costs(self._with_teacher(answers)), self.objective)
        return lambda: self._policy_gradients(experience)

    def _scored(self, answers: Rollout) -> Rollout:
        own_BR, _ = answer_logprobs(self.model, answers, self.linear_loss, **self._limit)
        return self._with_teacher(replace(answers, student_logprobs_BR=own_BR))

    def _micro_batches(self, minibatch: Rollout, balanced: bool = True) -> list[MicroBatch]:
        """Micro-batches of the whole mini-batch, the same on every rank."""
        limits = (self.regime.microbatch_tokens, self.regime.microbatch_size)
        return micro_batches(minibatch, *limits, shares=self.group.size if balanced else 1)

    def _gradients(
        self, objective: Objective, micro: MicroBatch, normaliser: Tensor, factor: float, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        output = micro.loss(self.linear_loss, objective, self.model, self.pair.teacher, normaliser, temperature)
        return self._backward(output, factor)

    def _backward(self, output: LossOutput, factor: float) -> dict[str, Tensor]:
        """Add gradients; returns the loss and its parts, times the factor."""
        with record_function("update: backward"):
            self.manual_backward(output.loss * factor)
        return {name: value * factor for name, value in {"loss": output.loss.detach(), **output.parts}.items()}

    def _update(
        self, losses: dict[str, Tensor], rate: float, records_B: Tensor, rows: Tensor, figures: dict | None = None
    ) -> None:
        """Make an optimizer step, unless a number is not finite, and add up its losses and figures."""
        optimizer = self.optimizers()
        with record_function("update: optimizer"):
            self.sum_gradients()
            norm = self.finite.norm(self, optimizer, losses, records_B[rows])
            if norm is None:
                return
            self.optim.step(optimizer, norm, rate)
            if self.average is not None:
                self.average.follow()
        _add(self._losses, losses)
        _add(self._same, {"optim/grad_norm": norm, **(figures or {})})
        self._n_made += 1


def _add(sums: dict, values: dict) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value
