"""Objectives and regularisers: one file each, settings in, LossOutput out."""

from minillm.objectives.cross_entropy import CrossEntropy, PretrainLoss, cross_entropy_wanted, mixed_cross_entropy
from minillm.objectives.minillm import MiniLLM

__all__ = ["CrossEntropy", "MiniLLM", "PretrainLoss", "cross_entropy_wanted", "mixed_cross_entropy"]
