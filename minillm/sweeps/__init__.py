"""Sweeps (train.py -m): around the trials, one trial, the picture of a comparison."""

from minillm.sweeps.sweep import Sweep, SweepStart, begin, with_report

__all__ = ["Sweep", "SweepStart", "begin", "with_report"]
