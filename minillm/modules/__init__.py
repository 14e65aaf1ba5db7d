"""LightningModules: one file a regime."""

from minillm.modules.on_policy import OnPolicy, OnPolicyDistillation
from minillm.modules.start import SupervisedStart

__all__ = ["OnPolicy", "OnPolicyDistillation", "SupervisedStart"]
