"""How far apart are teacher and student on a few of the student's own answers, before anything is trained?"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.data import PromptSet, rows_at
from minillm.linear_loss import LinearLoss
from minillm.models import LanguageModel, Pair
from minillm.sampling import decode
from minillm.scoring import rollout_reverse_kl
from minillm.seeding import seed_for

SAMPLES, TOKENS = 8, 32


@dataclass(frozen=True)
class Agreement:
    """Exact KL over the shared vocabulary in nats a token, at the `tokens` of the student's answers to `samples`
    prompts: `reverse_kl` is KL[student || teacher], `forward_kl` KL[teacher || student]."""

    reverse_kl: float
    forward_kl: float
    samples: int
    tokens: int


def agreement(pair: Pair, prompts: PromptSet, *, seed: int, max_new_tokens: int, max_tokens: int) -> Agreement:
    """Sample up to 8 answers of at most 32 tokens and compare. No global random state is read or changed.

    Args:
        max_new_tokens: a lower limit on answers, if the run has one. max_tokens: through the models at a time.
    """
    # Without compilation, which would be for these few shapes and change those that follow.
    student, teacher = (LanguageModel(each, pair.n_vocab) for each in (pair.student, pair.teacher.network))
    rows = rows_at(seed_for(seed, "preflight prompts"), 0, min(SAMPLES, len(prompts)), len(prompts))
    rollout = decode(
        student,
        None,
        prompts.batch(rows).to(student.device),
        seeds=[seed_for(seed, "preflight", row) for row in rows],
        batch_size=SAMPLES,
        stop_ids=pair.stop_ids,
        pad_id=pair.pad_id,
        max_new_tokens=min(TOKENS, max_new_tokens),
    )
    n_tokens = int(rollout.response_mask_BR.sum())
    reverse, forward = (
        rollout_reverse_kl(*models, rollout, LinearLoss(), max_tokens=max_tokens).sum().item() / n_tokens
        for models in ((student, teacher), (teacher, student))  # the forward KL is the reverse one of the other
    )
    return Agreement(reverse, forward, len(rows), n_tokens)
