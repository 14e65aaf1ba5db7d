"""What the training modules and the export share: a state dict of the weights that are trained."""

from __future__ import annotations

import lightning as L
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel


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
