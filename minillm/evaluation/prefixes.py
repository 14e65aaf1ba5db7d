"""Answers sampled by one model, several a prompt, and what student and teacher say at every token of them.

Axes: B answers, R response positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minillm.common.seeding import seed_for
from minillm.common.types import Rollout
from minillm.data import PromptSet
from minillm.data.prompts import pad
from minillm.evaluation.metrics import PrefixKL
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import Divergence, decode, rollout_divergence


@dataclass(frozen=True)
class Sample:
    """An answer to the prompt of that row number, with its end token where it has one."""

    prompt: int
    tokens: tuple[int, ...]


def sample_answers(
    model: LanguageModel,
    prompts: PromptSet,
    *,
    seed: int,
    n_samples: int = 10,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: tuple[int, ...],
    rows: Sequence[int] | None = None,
) -> list[Sample]:
    """`n_samples` answers to every prompt (or those of `rows`) at temperature 1, those of one prompt together.

    A random stream depends on seed, prompt and sample only. Student and teacher get the same streams, so that what
    differs between their samples is the models and not the luck.
    """
    rows = range(len(prompts)) if rows is None else rows
    numbers = [(row, sample) for row in rows for sample in range(n_samples)]
    if not numbers:
        return []
    rollout = decode(
        model,
        None,
        prompts.batch([row for row, _ in numbers]).to(model.device),
        seeds=[seed_for(seed, "prefix", row, sample) for row, sample in numbers],
        batch_size=batch_size,
        stop_ids=stop_ids,
        pad_id=prompts.pad_id,
        max_new_tokens=max_new_tokens,
    )
    ids, counts = rollout.response_ids_BR.tolist(), rollout.response_mask_BR.sum(-1).tolist()
    return [Sample(row, tuple(ids[at][: counts[at]])) for at, (row, _) in enumerate(numbers)]


def divergence(
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: PromptSet,
    samples: Sequence[Sample],
    *,
    max_tokens: int = 2048,
) -> Divergence:
    """[B, R] float64 on the CPU: both models at every token of the samples, whoever drew them; see
    `rollout_divergence`."""
    if not samples:
        return Divergence(*(torch.zeros(0, 0, dtype=torch.float64) for _ in fields(Divergence)))
    batch = prompts.batch([sample.prompt for sample in samples])
    rollout = Rollout(batch.ids_BP, batch.mask_BP, *pad([sample.tokens for sample in samples], 0, left=False))
    found = rollout_divergence(student, teacher, rollout.to(student.device), LinearLoss(), max_tokens=max_tokens)
    return Divergence(*(getattr(found, field.name).double().cpu() for field in fields(Divergence)))


def sample_mask(samples: Sequence[Sample]) -> Tensor:
    """[B, R] bool: the tokens that the samples have."""
    return pad([sample.tokens for sample in samples], 0, left=False)[1]


def prefix_kl(
    student: LanguageModel, teacher: LanguageModel, prompts: PromptSet, samples: Sequence[Sample], **options
) -> PrefixKL:
    """KL[p || q] at the prefixes of the samples: one side of `metrics.exposure_curve`. `options`: see `divergence`."""
    found = divergence(student, teacher, prompts, samples, **options)
    prompt_B = torch.tensor([sample.prompt for sample in samples], dtype=torch.long)
    return PrefixKL(found.forward_kl_BR, sample_mask(samples), prompt_B)
