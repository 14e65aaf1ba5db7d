"""What models say about answers that are there, in micro-batches."""

from minillm.scoring.score import (
    Divergence,
    answer_logprobs,
    prepared,
    rollout_divergence,
    rollout_reverse_kl,
    with_teacher,
)

__all__ = ["Divergence", "answer_logprobs", "prepared", "rollout_divergence", "rollout_reverse_kl", "with_teacher"]
