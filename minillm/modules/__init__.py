"""LightningModules: one file a regime."""

from minillm.modules.on_policy import OnPolicyDistillation
from minillm.modules.regime import OnPolicy, Supervised
from minillm.modules.start import SupervisedStart
from minillm.modules.supervised import SupervisedDistillation

__all__ = ["OnPolicy", "OnPolicyDistillation", "Supervised", "SupervisedDistillation", "SupervisedStart"]
