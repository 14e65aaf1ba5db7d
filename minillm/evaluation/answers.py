"""Answer held-out prompts and measure the answers: the validation of a run and evaluate.py share this. And samples,
several a prompt, with what student and teacher say at every token of them.

Axes: B answers, R response positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.common.console import tracked
from minillm.common.seeding import seed_for
from minillm.common.types import Rollout
from minillm.data import PromptSet
from minillm.data.prompts import pad
from minillm.evaluation.metrics import FIGURES, Figure, PrefixKL, distinct
from minillm.evaluation.metrics.figures import Answered
from minillm.models import LanguageModel, Pair
from minillm.models.vocabulary import answer_text
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import ALONE, Group
from minillm.rollout import Divergence, answer_logprobs, decode, rollout_alignment, rollout_divergence, with_spans
from minillm.rollout.micro_batch import micro_batches

_ALIGNED = ("reverse_kl", "entropy", "teacher_entropy", "overlap", "overlap_mass")
_MAX_TOKENS = 2048  # through the models at a time when answers are scored


@dataclass(frozen=True)
class Answer:
    """One model's answer to one prompt. `reverse_kl` and what follows it are summed over its tokens, see
    `minillm.rollout.score.Alignment`; None without a teacher, and but for `reverse_kl_sampled` with one that lists some
    tokens only. `spans_kl`: log q - log p of the answer where the teacher has tokens of its own, None where it could
    not be aligned. `logprobs`: the smallest and the largest log-prob of its
    tokens under the model."""

    id: str
    seed: int | None
    prompt: str
    answer: str
    tokens: tuple[int, ...] = field(repr=False)
    truncated: bool
    reverse_kl: float | None = None
    entropy: float | None = None
    teacher_entropy: float | None = None
    overlap: float | None = None
    overlap_mass: float | None = None
    reverse_kl_sampled: float | None = None
    spans_kl: float | None = None
    logprobs: tuple[float, float] | None = field(default=None, repr=False)

    def row(self) -> dict:
        """For JSON lines and tables."""
        row = asdict(self)
        absent = ("spans_kl",) if self.spans_kl is None else ()
        for name in ("logprobs", "reverse_kl_sampled", *_ALIGNED[1:], *absent):
            del row[name]
        row["n_tokens"] = len(row.pop("tokens"))
        return row


def answer_prompts(
    model: LanguageModel,
    prompts: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seeds: Sequence[int] | None,
    stop_ids: tuple[int, ...],
    teacher: LanguageModel | None = None,
    spans: Pair | None = None,
    rows: Sequence[int] | None = None,
    group: Group = ALONE,
    asking: Callable[[], AbstractContextManager] = nullcontext,
    **decoding: Any,
) -> list[Answer]:
    """One answer a prompt and seed, seed by seed in the order of the prompts; greedy ones where `seeds` is None.

    `rows` chooses some of the prompts. The ranks of `group` share the work, and each gets all answers. `decoding`:
    max_new_tokens, batch_size, temperature, no_repeat_ngram_size and interrupt of `decode`; `asking`: around the
    teacher's passes, on every rank. The reverse KL is that of the models' own distributions at T = 1, whatever
    temperature and n-gram limit the answers were drawn with. `spans`: a pair whose teacher has tokens of its own; the
    answers then have `spans_kl`.

    A prompt's random stream depends on seed and prompt number only: not on the batch, nor on what was trained.
    """
    rows = range(len(prompts)) if rows is None else rows
    asked = group.share([(seed, row) for seed in ((None,) if seeds is None else seeds) for row in rows])
    if not asked:
        with asking():
            return group.join([])
    streams = None if seeds is None else [seed_for(seed, "evaluation", row) for seed, row in asked]
    rollout = _sampled(model, prompts, [row for _, row in asked], streams, stop_ids=stop_ids, **decoding)
    aligned: dict[str, list[float]] = {}
    with asking():
        if teacher and not teacher.exact:
            logp_BR, _ = answer_logprobs(teacher, rollout.for_teacher, LinearLoss(), max_tokens=_MAX_TOKENS)
            gap_BR = (rollout.student_logprobs_BR - logp_BR).masked_fill(~rollout.response_mask_BR, 0.0)
            aligned = {"reverse_kl_sampled": gap_BR.sum(-1).tolist()}
        elif teacher:
            found = rollout_alignment(model, teacher, rollout, LinearLoss(), max_tokens=_MAX_TOKENS)
            aligned = {name: getattr(found, f"{name}_BR").sum(-1).tolist() for name in _ALIGNED}
        if spans:
            found = with_spans(rollout, model, spans, LinearLoss(), max_tokens=_MAX_TOKENS)
            sums_B = (found.student_logprobs_BR - found.teacher_logprobs_BR).double().sum(-1).tolist()
            kept = found.response_mask_BR.any(-1).tolist()
            aligned["spans_kl"] = [value if keep else None for value, keep in zip(sums_B, kept, strict=True)]
    answers = []
    for at, (seed, row) in enumerate(asked):
        mask_R = rollout.response_mask_BR[at]
        tokens, logprobs = (
            values_BR[at][mask_R].tolist() for values_BR in (rollout.response_ids_BR, rollout.student_logprobs_BR)
        )
        answer = Answer(
            id=prompts.records[row].id,
            seed=seed,
            prompt=prompts.records[row].conversation,
            answer=answer_text(tokenizer, tokens, stop_ids),
            tokens=tuple(tokens),
            truncated=tokens[-1] not in stop_ids,
            logprobs=(min(logprobs), max(logprobs)),
            **{name: values[at] for name, values in aligned.items()},
        )
        answers.append(answer)
    return group.join(answers)


@torch.no_grad()
def reference_losses(model: LanguageModel, prompts: PromptSet, group: Group = ALONE) -> tuple[list[float], list[int]]:
    """(- log q, tokens) of each prompt's first reference, nats; 0 where it has none. The ranks of `group` share the
    work, and each gets all values."""
    batch = prompts.batch(range(len(prompts)), with_references=True).to(model.device)
    answers = (batch.reference_ids_BR, batch.reference_mask_BR)
    references = Rollout(batch.ids_BP, batch.mask_BP, *answers, teachers_B=batch.teachers_B)
    losses_B, width = torch.zeros(len(prompts), dtype=torch.float64), batch.reference_ids_BR.shape[1]
    for micro in tracked(group.share(micro_batches(references, _MAX_TOKENS)), "Scoring references"):
        logprobs_N = LinearLoss().logprobs(micro.side(model), micro.take(references.response_ids_BR))
        losses_B.index_add_(0, (micro.token_N // width).cpu(), -logprobs_N.double().cpu())
    shares = group.join([losses_B.tolist()])
    return [sum(each) for each in zip(*shares, strict=True)], batch.reference_mask_BR.sum(-1).tolist()


def is_uniform(answers: Sequence[Answer], n_vocab: int) -> bool:
    """Whether a model gave each token of its answers the probability 1 / n_vocab, as far as rounding tells. A network
    whose hidden states have overflowed does; one with random weights does not."""
    values = [value for answer in answers for value in answer.logprobs]
    return max(values) - min(values) < 1e-3 and abs(values[0] + math.log(n_vocab)) < 0.05  # half-type logits


def figure_values(
    answers: Sequence[Answered], references: Sequence[Sequence[str]], figures: Sequence[Figure] = FIGURES
) -> dict[str, float | tuple[list[float], list[float]]]:
    """The figures that apply to a set of answers: (value, weight) of each answer, whose ratio of sums is the figure, or
    a number that only the whole set has (distinct-n). A value that an answer already keeps under the figure's key is
    not computed again; a KL is kept or absent."""
    counts = [len(answer.tokens) for answer in answers]
    found = {}
    of_the_set = distinct(answer.tokens for answer in answers)
    for figure in figures:
        if figure.key in of_the_set:
            found[figure.key] = of_the_set[figure.key]
            continue
        values = [_value(figure, *each) for each in zip(answers, references, strict=True)]
        if None not in values and (values or figure.of):
            found[figure.key] = (values, [1] * len(values) if figure.of else counts)
    return found


def _value(figure: Figure, answer: Answered, references: Sequence[str]) -> float | None:
    kept = vars(answer).get(figure.key) if figure in FIGURES else None  # one's own may have the name of a field
    return figure.of(answer, references) if kept is None and figure.of else kept


def summarise(
    answers: Sequence[Answer], references: Sequence[Sequence[str]] | None, also: Sequence[Figure] = ()
) -> dict[str, float]:
    """Figures of a set of answers by one number each, see `figure_values`, `also` some of one's own; of distinct-n only
    distinct_4. `references` in the same order; None leaves out what needs them."""
    figures = {"tokens": float(sum(len(answer.tokens) for answer in answers))}
    chosen = [each for each in (*FIGURES, *also) if each.key not in ("distinct_1", "distinct_2", "distinct_3")]
    for key, found in figure_values(answers, references or [()] * len(answers), chosen).items():
        figures[key] = found if isinstance(found, float) else sum(found[0]) / sum(found[1])
    return figures


def span_figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Of answers to prompts of a teacher with tokens of its own: an estimate of the reverse KL in nats a byte of their
    texts (absent where no answer is left), and the share that could not be aligned."""
    kept = [each for each in answers if each.spans_kl is not None]
    n_bytes = sum(len(each.answer.encode()) for each in kept)
    kl = {"reverse_kl_per_byte": sum(each.spans_kl for each in kept) / max(1, n_bytes)} if kept else {}
    return kl | {"dropped": 1 - len(kept) / len(answers)}


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
    rows: Sequence[int] | None = None,
    **decoding: Any,
) -> list[Sample]:
    """`n_samples` answers to every prompt (or those of `rows`) at temperature 1, those of one prompt together.
    `decoding`: max_new_tokens, batch_size and stop_ids of `decode`.

    A random stream depends on seed, prompt and sample only. Student and teacher get the same streams, so that what
    differs between their samples is the models and not the luck.
    """
    rows = range(len(prompts)) if rows is None else rows
    numbers = [(row, sample) for row in rows for sample in range(n_samples)]
    if not numbers:
        return []
    streams = [seed_for(seed, "prefix", row, sample) for row, sample in numbers]
    rollout = _sampled(model, prompts, [row for row, _ in numbers], streams, **decoding)
    ids, counts = rollout.response_ids_BR.tolist(), rollout.response_mask_BR.sum(-1).tolist()
    return [Sample(row, tuple(ids[at][: counts[at]])) for at, (row, _) in enumerate(numbers)]


def _sampled(
    model: LanguageModel, prompts: PromptSet, rows: Sequence[int], streams: list[int] | None, **decoding: Any
) -> Rollout:
    """An answer to each of `rows`, from the random stream of its place; greedy ones without."""
    return decode(model, None, prompts.batch(rows).to(model.device), seeds=streams, pad_id=prompts.pad_id, **decoding)


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
