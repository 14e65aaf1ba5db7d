"""Metrics on texts and tokens, as plain functions. Definitions: docs/evaluation.md."""

from minillm.common.lazy import lazily

_MODULES = {
    "calibration": ("Calibration", "calibration_figures", "label_probabilities"),
    "exposure": ("ExposureCurve", "PrefixKL", "exposure_curve"),
    "figures": ("FIGURES", "Figure", "figures_at"),
    "intervals": ("Spread", "bootstrap", "over_seeds", "paired_change"),
    "position": ("PositionMeans", "pooled", "position_means"),
    "texts": ("by_length", "distinct", "distinct_n", "exact_match", "rouge_l"),
}
__getattr__ = lazily(__name__, _MODULES)
__all__ = [name for names in _MODULES.values() for name in names]
