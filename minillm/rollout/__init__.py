"""Rollouts: answers drawn from student, teacher or their mixture in one pass, and what models say about answers."""

from minillm.rollout.decoding import decode
from minillm.rollout.sampler import Sampler
from minillm.rollout.score import (
    Divergence,
    answer_logprobs,
    prepared,
    rollout_divergence,
    rollout_reverse_kl,
    with_teacher,
)

__all__ = ["Divergence", "Sampler", "answer_logprobs", "decode", "prepared", "rollout_divergence",
           "rollout_reverse_kl", "with_teacher"]  # fmt: skip
