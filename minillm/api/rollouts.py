"""Rollouts and gradients, for one's own loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from minillm.api.inputs import Prompts, prompts_of
from minillm.common.errors import check
from minillm.common.seeding import seed_for
from minillm.common.types import Experience, Rollout
from minillm.data import rows_at
from minillm.models import LanguageModel, Pair
from minillm.objectives import SPANS, START, MiniLLM, Objective
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import Sampler, prepared, with_costs, with_spans, with_teacher
from minillm.rollout.micro_batch import micro_batches

_MAX_TOKENS = 2048


def rollouts(
    pair: Pair,
    prompts: Prompts,
    *,
    size: int = 32,
    sampler: Sampler | None = None,
    data: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Iterator[Rollout]:
    """Rollouts of `size` answers without end, for one's own loop: drawn by the student as it is then (or its
    mixture with the teacher), with the log-probs of both models and the teacher's hidden states. The same prompts and
    answers as those of `distill` with the same seed, if that is given `validation` and no supervised start. A teacher
    that is a moving average (`ema`) stays as it is: `distill` moves it.

    Raises:
        ConfigError: data.on_policy or data.replay, which are for `distill`. ModelError: the sampler cannot answer.
    """
    stored = [f"data.{key}={(data or {})[key]}" for key in ("on_policy", "replay") if key in (data or {})]
    check((not stored, f"{', '.join(stored)}: a rollout has new answers only; wanted `distill`, or no such key"))
    chosen, separate = prompts_of(pair, prompts, data), pair.teacher_tokenizer is not None
    sampler = sampler or Sampler(alpha=0.0 if separate else Sampler.alpha)
    check(
        (
            not separate or (sampler.alpha, sampler.temperature) == (0, 1),
            f"sampler: alpha={sampler.alpha}, temperature={sampler.temperature} with tokenizers=separate; wanted 0 "
            "and 1",
        )
    )
    sampler.begin(pair)
    model = LanguageModel(pair.student, pair.n_vocab, pair.compile)
    for index in itertools.count():
        rows = rows_at(seed_for(seed, "prompts"), index * size, size, len(chosen), sampler.answers_per_prompt)
        batch = chosen.batch(rows, index=index).to(model.device)
        seeds = [seed_for(seed, "rollout", index, row) for row in range(size)]
        ends = dict(stop_ids=pair.stop_ids, pad_id=pair.pad_id)
        with torch.no_grad():
            rollout = sampler.rollout(model, pair.teacher, batch, seeds, **ends)
            if separate:
                rollout = with_spans(rollout, model, pair, LinearLoss(), max_tokens=_MAX_TOKENS)
            else:
                rollout = with_teacher(rollout, pair.teacher, LinearLoss(), max_tokens=_MAX_TOKENS)
        yield rollout


def prepare(
    pair: Pair,
    rollout: Rollout,
    objective: Objective | None = None,
    *,
    linear_loss: LinearLoss | None = None,
    max_tokens: int = _MAX_TOKENS,
) -> Experience:
    """The rollout with what the objective computes of it once, with the student as it is now: for several steps of
    `backward` on it.

    Raises:
        ConfigError: the teacher or the rollout does not give what the objective needs.
    """
    objective, teacher = objective or MiniLLM(), pair.teacher
    needs, name = objective.needs, f"objective={type(objective).__name__}"
    listed = None if teacher is None or teacher.exact else teacher.k
    check(
        (
            START not in needs or rollout.start_logprobs_BR is not None,
            f"{name}: wanted a rollout with `start_logprobs_BR`, the log-probs of its tokens under the student at the "
            "start; `distill` makes them",
        ),
        (
            (SPANS in needs) == (pair.teacher_tokenizer is not None),
            f"{name} with tokenizers={'separate' if pair.teacher_tokenizer else 'shared'}: SpanReverseKL is for a "
            "teacher with other tokens, and nothing else is",
        ),
        (
            listed is None or objective.teacher_tokens in range(listed + 1),
            f"{name} with a vLLM teacher that lists {listed} tokens: wanted an objective that needs no more, or "
            "`pair.teacher.list_tokens(K)` before the rollouts",
        ),
    )
    student, loss = LanguageModel(pair.student, pair.n_vocab, pair.compile), linear_loss or LinearLoss()
    return prepared(with_costs(rollout, student, teacher, objective, loss, max_tokens=max_tokens), objective)


def backward(
    pair: Pair,
    rollout: Rollout,
    objective: Objective | None = None,
    *,
    linear_loss: LinearLoss | None = None,
    max_tokens: int = _MAX_TOKENS,
) -> dict[str, float]:
    """Add the gradient of the objective on a rollout to the student's, as one mini-batch; returns the loss and its
    parts. `max_tokens` go through the student at a time, which changes nothing but rounding, unless the objective
    divides by what is in a micro-batch. For several steps on one rollout pass what `prepare` gives.

    Raises:
        ConfigError: see `prepare`.
    """
    objective, linear_loss = objective or MiniLLM(), linear_loss or LinearLoss()
    batch, network = rollout, pair.student
    if not isinstance(rollout, Experience):
        batch = prepare(pair, rollout, objective, linear_loss=linear_loss, max_tokens=max_tokens)
    before, student = network.training, LanguageModel(network, pair.n_vocab, pair.compile)
    network.train(before or network.is_gradient_checkpointing)  # in eval mode transformers keeps all activations
    normaliser = objective.normaliser(batch.response_mask_BR)
    sums: dict[str, float] = {}
    micros = micro_batches(batch, max_tokens)
    for micro in micros:
        if objective.per_micro_batch:
            normaliser = len(micro) * len(micros)
        output = micro.loss(linear_loss, objective, student, pair.teacher, normaliser, batch.temperature)
        output.loss.backward()
        for name, value in {"loss": output.loss.detach(), **output.parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    network.train(before)
    return sums
