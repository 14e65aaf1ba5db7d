"""What the training modules and the export share: a state dict of the weights that are trained."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from minillm.errors import Interrupted
from minillm.linear_loss import LinearLoss
from minillm.models import LanguageModel, Pair
from minillm.modules.finite import Finite
from minillm.optim import Optim
from minillm.preemption import Preemption


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

    def __init__(self, pair: Pair, linear_loss: LinearLoss, optim: Optim):
        super().__init__(pair.student)
        self.pair, self.linear_loss, self.optim = pair, linear_loss, optim
        self.model = LanguageModel(pair.student, pair.n_vocab, pair.compile)
        self.preemption, self.finite = Preemption(), Finite()
        self.step = 0
        self.metrics: dict[str, float] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optim.build(p for p in self.student.parameters() if p.requires_grad)

    def on_train_start(self) -> None:
        if self.step >= self.n_steps:  # a resumed run that was already through
            self.trainer.should_stop = True

    # -- asked to stop ----------------------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """Where all processes come by and the state can be saved whole: raises Interrupted on all if one was asked."""
        asked = self.preemption.requested
        if self.trainer.strategy.reduce_boolean_decision(asked is not None, all=False):
            raise Interrupted(asked or "a signal to another process")

    def interrupt(self) -> None:
        """For decoding, token by token: raises Interrupted. Only a process that is alone may leave it so."""
        if self.preemption.requested and self.trainer.world_size == 1:
            self.preemption.check()

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if self.at_boundary:
            self.stop_if_asked()
