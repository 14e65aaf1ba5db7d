"""Objectives and regularisers, see `contract`."""

from minillm.objectives.contract import COSTS, SPANS, START, TEACHER, Objective, TokenLoss
from minillm.objectives.cross_entropy import CrossEntropy, PretrainLoss
from minillm.objectives.exact import (
    AdaptiveKL,
    DistiLLM2,
    Divergence,
    EntropyAware,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForward,
    SkewReverse,
    TopK,
    TotalVariation,
)
from minillm.objectives.minillm import MiniLLM
from minillm.objectives.sampled import Extrapolated, ImportanceWeighted, Sampled, SampledBaseline
from minillm.objectives.spans import SpanReverseKL

__all__ = [
    "COSTS",
    "SPANS",
    "START",
    "TEACHER",
    "AdaptiveKL",
    "CrossEntropy",
    "DistiLLM2",
    "Divergence",
    "EntropyAware",
    "Extrapolated",
    "ForwardKL",
    "ImportanceWeighted",
    "JensenShannon",
    "MiniLLM",
    "Objective",
    "PretrainLoss",
    "ReverseKL",
    "Sampled",
    "SampledBaseline",
    "SkewForward",
    "SkewReverse",
    "SpanReverseKL",
    "TokenLoss",
    "TopK",
    "TotalVariation",
]
