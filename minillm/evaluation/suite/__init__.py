"""The work of evaluate.py: models x files x decodings x seeds, in units that are done once, and what comes of them."""

from minillm.evaluation.suite.run import evaluate, run_suite
from minillm.evaluation.suite.settings import Suite, check_suite

__all__ = ["Suite", "check_suite", "evaluate", "run_suite"]
