"""Objectives and regularisers: one file each, see `contract`."""

from minillm.objectives.contract import TEACHER, Objective, TokenLoss
from minillm.objectives.cross_entropy import CrossEntropy, PretrainLoss
from minillm.objectives.minillm import MiniLLM

__all__ = ["TEACHER", "CrossEntropy", "MiniLLM", "Objective", "PretrainLoss", "TokenLoss"]
