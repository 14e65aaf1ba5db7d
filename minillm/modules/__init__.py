"""LightningModules: one file a regime."""

from minillm.modules.on_policy import OnPolicyDistillation
from minillm.modules.regime import OnPolicy
from minillm.modules.start import SupervisedStart

__all__ = ["OnPolicy", "OnPolicyDistillation", "SupervisedStart"]
