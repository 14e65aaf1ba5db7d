"""Metrics on texts and tokens: one file each, pure (the judge asks an endpoint), usable without the rest."""

from minillm.metrics.diversity import distinct_n
from minillm.metrics.rouge import exact_match, rouge_l

__all__ = ["distinct_n", "exact_match", "rouge_l"]
