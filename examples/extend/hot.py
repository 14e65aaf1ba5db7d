"""A sampler that is not in the package: the student at a higher temperature than the one it learns at.

python train.py 'hydra.searchpath=[file://examples/extend/conf]' sampler=hot experiment=demo
"""

from dataclasses import dataclass, replace

from minillm.common.errors import check
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import Sampler, answer_logprobs, decode


@dataclass(frozen=True)
class Hot(Sampler):
    """Draws at `drawn_at`. It can draw every token, so that weights q / b make the estimate that of the student."""

    alpha: float = 0.0
    drawn_at: float = 1.3

    def __post_init__(self):
        super().__post_init__()
        check((self.alpha == 0, f"alpha={self.alpha}: the teacher takes no part; wanted 0"))

    def rollout(self, student, teacher, prompts, seeds, *, keep_hidden=True, **ends):
        sizes = dict(batch_size=self.batch_size, max_new_tokens=self.max_new_tokens)
        drawn = decode(student, None, prompts, seeds=seeds, temperature=self.drawn_at, **sizes, **ends)
        # What drew them, and what the student itself says of them.
        drawn = replace(drawn, behaviour_logprobs_BR=drawn.student_logprobs_BR, temperature=self.temperature)
        own_BR, _ = answer_logprobs(student, drawn, LinearLoss(), max_tokens=2048)
        return replace(drawn, student_logprobs_BR=own_BR)
