"""What the training modules and the export share: a state dict of the weights that are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from minillm.common.errors import Interrupted, Unanswered
from minillm.common.machine import Phases
from minillm.common.types import Rollout
from minillm.models import LanguageModel, Pair
from minillm.models.own_teacher import MovingAverage
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import ALONE, Group, Replicated, Sharded, group_of
from minillm.train.finite import Finite
from minillm.train.optim import Optim, without_decay
from minillm.train.preemption import Preemption

Part = TypeVar("Part")


class StudentModule(L.LightningModule):
    """Frozen weights (those under adapters) are neither saved nor asked for: they come from where the student was
    loaded."""

    def __init__(self, student: PreTrainedModel):
        super().__init__()
        self.student = student

    def state_dict(self, *args, **kwargs) -> dict:
        frozen = self._frozen()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def load_state_dict(self, state_dict: dict, *args, **kwargs):
        return super().load_state_dict(self._frozen() | state_dict, *args, **kwargs)

    def _frozen(self) -> dict[str, Tensor]:
        state = super().state_dict(keep_vars=True)
        return {name: each for name, each in state.items() if isinstance(each, Parameter) and not each.requires_grad}


class TrainingModule(StudentModule):
    """A student in training: `step` counts its optimizer steps, `n_steps` are to be made; `metrics` are of the newest
    round."""

    n_steps: int
    _is_sharded = _replicated = _reduce_late = False
    whole = True  # whether weights and counters are those of a checkpoint: nothing has changed since a boundary

    def __init__(self, pair: Pair, linear_loss: LinearLoss, optim: Optim):
        super().__init__(pair.student)
        self.pair, self.linear_loss, self.optim = pair, linear_loss, optim
        self.model = LanguageModel(pair.student, pair.n_vocab, pair.compile)
        self.reference: LanguageModel | None = None  # the student at the start, for an objective that needs it
        model, self.average = pair.loaded_by, None  # the teacher, where it is the moving average of the student
        if model is not None and model.own_teacher == "ema":
            self.average = MovingAverage(pair.student, pair.teacher.network, model.ema_rate)
        self.preemption, self.finite = Preemption(), Finite()
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.group = ALONE

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if self.average is not None:
            checkpoint["teacher"] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if self.average is not None:
            self.average.load_state_dict(checkpoint["teacher"])

    def configure_model(self) -> None:
        """Called by the trainer once it knows the devices; again for a module that has been there."""
        strategy = self.trainer.strategy
        self.group, self._replicated = group_of(strategy), isinstance(strategy, Replicated)
        if isinstance(strategy, Sharded) and not self._is_sharded:
            self._is_sharded = True
            self._reduce_late = strategy.settings.reduce == "step"
            half = self.trainer.precision == "bf16-mixed"
            parts = dict(mesh=strategy.device_mesh, cpu_offload=strategy.settings.cpu_offload, half=half)
            self.model.share_out(keep_head=False, **parts)
            if self.reference is not None:
                self.reference.share_out(keep_head=False, **parts)
            for teacher in self.pair.teachers.values():
                # Updates need its head on kept hidden states, without its body.
                teacher.share_out(keep_head=True, **parts)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Gather all models, so that each rank may run them as often as it likes."""
        with ExitStack() as stack:
            for model in filter(None, (self.model, self.reference, *self.pair.teachers.values())):
                stack.enter_context(model.gathered())
            yield

    def sum_gradients(self) -> None:
        """Sum gradients over the ranks where weights are replicated. For sharded weights backward has done it."""
        if self._replicated:
            trained = [each for each in self.student.parameters() if each.requires_grad]
            for each in trained:
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
            self.group.add_up([each.grad for each in trained])

    def my_share(self, parts: Sequence[Part], *, last: bool = True) -> Iterator[tuple[Part, float]]:
        """This rank's `parts` of a sum, each with its factor. Every rank gets as many, with a factor of 0 where none is
        left: all ranks or none make a pass over sharded weights. `last`: no other passes follow before the optimizer
        step."""
        for first in range(0, len(parts), self.group.size):
            self.reduce_after(last and first + self.group.size >= len(parts))
            place = first + self.group.rank
            yield (parts[place], 1.0) if place < len(parts) else (parts[0], 0.0)

    def reduce_after(self, last: bool) -> None:
        """Before a backward pass over sharded weights: with strategy.reduce=step only the last pass of an optimizer
        step sums gradients over the ranks."""
        if self._reduce_late:
            self.model.reduce_gradients(last)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = (each for each in self.student.parameters() if each.requires_grad)
        return self.optim.build(trained, exempt=without_decay(self.student))

    def rehearse(self, answers: Rollout) -> float:
        """Seconds of a forward and backward pass over a few answers, of which nothing stays."""
        self.student.train()  # as in a step
        gradients, phases = self.rehearsal(answers), Phases(self.device)
        with phases("update"):
            gradients()
        self.zero_grad()
        return phases.seconds["update"]

    def rehearsal(self, answers: Rollout) -> Callable[[], object]:
        """What adds the gradients of these answers, once the teacher has scored them."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        if self.step >= self.n_steps:  # a resumed run that was already through
            self.trainer.should_stop = True

    # -- asked to stop ----------------------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """Called by all processes where the state can be saved whole. Raises Interrupted on all if one was asked."""
        if asked := self._of_any(self.preemption.requested):
            raise Interrupted(asked)

    def _of_any(self, reason: str | None) -> str | None:
        """The first reason to stop that a process has, on all of them: a signal reaches each at its own moment."""
        everyone = Group(self.trainer.global_rank, self.trainer.world_size)
        return next(filter(None, everyone.join([reason])), None)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around passes of the teacher and rollouts, by all processes. Raises Interrupted on all if the server of a
        served teacher gave one of them no answer, or that of the sampler."""
        failed = None
        try:
            yield
        except Unanswered as error:
            failed = error.signal
        served = self.pair.teacher is not None and self.pair.teacher.served
        if failed := self._of_any(failed) if served else failed:
            self.preemption.requested = self.preemption.requested or failed  # a validation lets it pass until its end
            raise Interrupted(failed)

    def interrupt(self) -> None:
        """For decoding, token by token: raises Interrupted. Only a process that is alone may leave it so."""
        if self.preemption.requested and self.trainer.world_size == 1:
            self.preemption.check()

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if self.at_boundary:
            self.stop_if_asked()
