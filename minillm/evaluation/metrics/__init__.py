"""Metrics on texts and tokens: one file each, pure (the judge asks an endpoint). Definitions: docs/evaluation.md."""

from minillm.evaluation.metrics.calibration import Calibration, ReliabilityBin, calibration_figures, label_probabilities
from minillm.evaluation.metrics.diversity import distinct, distinct_n
from minillm.evaluation.metrics.exposure import ExposureCurve, PrefixKL, exposure_curve, exposure_interval
from minillm.evaluation.metrics.figures import FIGURES, Figure, figures_at
from minillm.evaluation.metrics.intervals import Spread, bootstrap, over_seeds
from minillm.evaluation.metrics.length import by_length, reference_length
from minillm.evaluation.metrics.position import PositionMeans, pooled, position_means
from minillm.evaluation.metrics.rouge import exact_match, rouge_l

__all__ = [
    "FIGURES",
    "Calibration",
    "ExposureCurve",
    "Figure",
    "PositionMeans",
    "PrefixKL",
    "ReliabilityBin",
    "Spread",
    "bootstrap",
    "by_length",
    "calibration_figures",
    "distinct",
    "distinct_n",
    "exact_match",
    "exposure_curve",
    "exposure_interval",
    "figures_at",
    "label_probabilities",
    "over_seeds",
    "pooled",
    "position_means",
    "reference_length",
    "rouge_l",
]
