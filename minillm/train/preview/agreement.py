"""How far apart are teacher and student on a few of the student's own answers, before anything is trained?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from minillm.common.seeding import seed_for
from minillm.common.types import PromptBatch
from minillm.data import PromptSet, rows_at
from minillm.data.prompts import pad
from minillm.models import LanguageModel, Pair
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import decode, rollout_divergence
from minillm.rollout.consistency import Consistency, check_consistency

SAMPLES, TOKENS = 8, 32
_ROWS, _ANSWER, _LONG = 8, 12, 512  # of the check that decoding and update are one model


@dataclass(frozen=True)
class Agreement:
    """Exact KL over the shared vocabulary in nats a token, at the `tokens` of the student's answers to `samples`
    prompts: `reverse_kl` is KL[student || teacher], `forward_kl` KL[teacher || student]."""

    reverse_kl: float
    forward_kl: float
    samples: int
    tokens: int


def agreement(
    student: LanguageModel,
    teacher: LanguageModel,
    pair: Pair,
    prompts: PromptSet,
    *,
    seed: int,
    max_new_tokens: int,
    max_tokens: int,
) -> Agreement:
    """Sample up to 8 answers of at most 32 tokens and compare. No global random state is read or changed.

    Args:
        max_new_tokens: a lower limit on answers, if the run has one. max_tokens: through the models at a time.
    """
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
    found = rollout_divergence(student, teacher, rollout, LinearLoss(), max_tokens=max_tokens)
    reverse, forward = (each.sum().item() / n_tokens for each in (found.reverse_kl_BR, found.forward_kl_BR))
    return Agreement(reverse, forward, len(rows), n_tokens)


def consistency(
    models: Mapping[str, LanguageModel],
    pair: Pair,
    prompts: PromptSet,
    *,
    seed: int,
    longest: int,
    max_new_tokens: int,
    max_tokens: int,
    temperature: float,
) -> dict[str, Consistency]:
    """By side (`student`, `teacher`), whether decoding and update are one model: see `check_consistency`. On some
    training prompts and a row that is longer than every window that a row of `longest` tokens, prompt and answer, can
    reach.

    """
    n_new = min(_ANSWER, max_new_tokens)
    rows = rows_at(seed_for(seed, "consistency"), 0, min(_ROWS - 1, len(prompts)), len(prompts))
    found = {}
    for side, model in models.items():
        seen = prompts.for_teacher if side == "teacher" else prompts
        reachable = [window + _ANSWER for window in model.windows if window < longest]
        n_long = max(1, min(longest - n_new, max([_LONG, *reachable])))
        text = max(seen.prompt_ids, key=len)
        long = (text * -(-n_long // len(text)))[:n_long]
        ids_BP, mask_BP = pad([*(seen.prompt_ids[row] for row in rows), long], pair.pad_id, left=True)
        found[side] = check_consistency(
            model,
            PromptBatch(ids_BP, mask_BP, torch.arange(len(ids_BP))).to(model.device),
            seeds=[seed_for(seed, "consistency", row) for row in range(len(ids_BP))],
            stop_ids=(pair.n_vocab,),  # none: few tokens would leave the mean KL to chance
            pad_id=pair.pad_id,
            max_new_tokens=n_new,
            max_tokens=max_tokens,
            temperature=temperature,
            training=side == "student",
        )
    return found
