"""The supervised regime: fine-tuning (teacher, start, SFT), word-level KD; SeqKD is either on the teacher's answers.

One training_step is a micro-batch; `accumulate_grad_batches` of them make an optimizer step, whose denominator is the
number of response tokens of all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from minillm.common.machine import peak_memory
from minillm.common.types import Experience, LossOutput, Rollout, SupervisedBatch
from minillm.models import LanguageModel, Pair
from minillm.models.cached import CachedTeacher
from minillm.objectives import TEACHER, Objective
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout.micro_batch import micro_batches
from minillm.train.optim import Optim, set_rate
from minillm.train.regime import Supervised
from minillm.train.student import TrainingModule


class SupervisedDistillation(TrainingModule):
    """An objective on given responses, by default (1 - r) cross entropy + r soft-target cross entropy (paper, section
    3.1); automatic optimisation.

    `step` counts optimizer steps up to `n_steps`; it is also the `round`, between which a checkpoint can stand.
    `teacher` is the pair's, or a cache in front of it.
    """

    title, stages = "fine-tuning", ("raw", "last")
    start_step, in_start = 0, False

    def __init__(
        self,
        pair: Pair,
        objective: Objective,
        linear_loss: LinearLoss,
        optim: Optim,
        regime: Supervised,
        n_steps: int,
        teacher: LanguageModel | CachedTeacher | None = None,
    ):
        super().__init__(pair, linear_loss, optim)
        self.objective, self.regime, self.n_steps = objective, regime, n_steps
        self.at_boundary = True
        self.teacher = teacher  # a plain object, not a module
        self._norm: Tensor | None = None  # of the gradients of this step

    @property
    def round(self) -> int:
        return self.step

    @property
    def counts(self) -> dict[str, int]:
        return {"steps": self.step}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["minillm"] = {"step": self.step}
        if not self.at_boundary and "loops" in checkpoint:  # the first micro-batches of this step are made again
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
            progress["completed"] -= progress["completed"] % self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.step = checkpoint["minillm"]["step"]

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        self.student.train()  # dropout is off in the config
        if self.at_boundary:
            self._losses: dict[str, Tensor] = defaultdict(float)
            self._records: list[Tensor] = []  # of each micro-batch
            self._n_tokens, self._began = batch.n_tokens, time.perf_counter()
        self.at_boundary = False
        prompts = batch.prompts
        answers, loss = prompts.answered(prompts.reference_ids_BR, prompts.reference_mask_BR), 0.0
        for output in self._outputs(answers, batch.n_tokens, self.teacher):
            loss = loss + output.loss
            for name, value in {"loss": output.loss.detach(), **output.parts}.items():
                self._losses[f"train/{name}"] = self._losses[f"train/{name}"] + value
        self._records.append(prompts.records)
        self.reduce_after(len(self._records) == self.trainer.accumulate_grad_batches)
        # The trainer divides by the number of micro-batches; ours are parts of a sum.
        return loss * self.trainer.accumulate_grad_batches

    def _outputs(self, answers: Rollout, n_tokens: int, teacher: LanguageModel | CachedTeacher) -> list[LossOutput]:
        """One for each of several teachers."""
        with torch.no_grad():
            answers = Experience(**vars(answers), constants=self.objective.prepare(answers))
        micros = micro_batches(answers, max_tokens=answers.ids_BS.numel())
        needs = TEACHER in self.objective.needs
        with self.asking():  # the weights have not changed since the last optimizer step
            sides = [micro.teacher_side(teacher) if needs else None for micro in micros]
        losses = (self.linear_loss, self.objective, self.model)
        return [micro.loss(*losses, side, n_tokens) for micro, side in zip(micros, sides, strict=True)]

    def rehearsal(self, answers: Rollout) -> Callable[[], object]:
        n_tokens = answers.response_mask_BR.sum()
        # Not by way of a cache of the teacher's states.
        return lambda: sum(each.loss for each in self._outputs(answers, n_tokens, self.pair.teacher)).backward()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        self.sum_gradients()
        self._norm = self.finite.norm(self, optimizer, self._losses, torch.cat(self._records))
        if self._norm is not None:  # without gradients the optimizer leaves all as it is
            self.optim.clip(optimizer, self._norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer, optimizer_closure=None) -> None:
        """Called for the last micro-batch of a mini-batch: the closure is its training_step, backward and clipping."""
        rate = self.optim.rate(self.step, self.n_steps)
        set_rate(optimizer, rate)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None and self._norm is not None:
            self.average.follow()
        self.step += 1
        self.at_boundary = True
        seconds = time.perf_counter() - self._began
        self.metrics = self.finite.metrics() | {
            "optim/learning_rate": rate,
            "time/step": seconds,
            "time/tokens_per_second": self._n_tokens / seconds,
            "memory/peak_gb": peak_memory(self.device),
        }
        if self._norm is not None:
            self.metrics |= self.group.total(self._losses) | {"optim/grad_norm": float(self._norm)}
        if self.step >= self.n_steps:
            self.trainer.should_stop = True
