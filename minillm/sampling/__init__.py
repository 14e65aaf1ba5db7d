"""Rollouts: decoding of student, teacher or their mixture in one pass."""

from minillm.sampling.decoding import decode
from minillm.sampling.sampler import Sampler

__all__ = ["Sampler", "decode"]
