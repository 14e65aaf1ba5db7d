"""An objective that is not in the package: the Rényi divergence of student and teacher at each token.

python train.py 'hydra.searchpath=[file://examples/extend/conf]' objective=renyi experiment=demo
"""

from dataclasses import dataclass

import torch

from minillm.common.errors import check
from minillm.objectives import Objective


@dataclass(frozen=True)
class Renyi(Objective):
    """D_a(q || p) = log(sum_v q(v)^a p(v)^(1 - a)) / (a - 1); near a = 1 the reverse KL, below it less strict."""

    alpha: float = 0.5

    def __post_init__(self):
        check((0 < self.alpha != 1, f"alpha={self.alpha}: wanted a number above 0 that is not 1"))

    def token_loss(self, student_NV, teacher_NV, ids_N, constants):
        mixed_NV = self.alpha * student_NV + (1 - self.alpha) * teacher_NV
        return torch.logsumexp(mixed_NV, dim=-1) / (self.alpha - 1)
