"""LightningModules: one file a regime."""

from minillm.modules.on_policy import OnPolicyDistillation
from minillm.modules.regime import OnPolicy, Supervised
from minillm.modules.start import SupervisedStart
from minillm.modules.student import StudentModule
from minillm.modules.supervised import SupervisedDistillation

__all__ = [
    "OnPolicy",
    "OnPolicyDistillation",
    "StudentModule",
    "Supervised",
    "SupervisedDistillation",
    "SupervisedStart",
]
