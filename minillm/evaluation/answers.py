"""Answer held-out prompts and measure the answers: the validation of a run and evaluate.py share this."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from minillm.common.seeding import seed_for
from minillm.common.types import Rollout
from minillm.data import PromptSet
from minillm.evaluation.metrics import FIGURES, Figure, distinct
from minillm.evaluation.metrics.figures import Answered
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import ALONE, Group
from minillm.rollout import decode, rollout_alignment
from minillm.rollout.micro_batch import micro_batches

_ALIGNED = ("reverse_kl", "entropy", "teacher_entropy", "overlap", "overlap_mass")
_MAX_TOKENS = 2048  # through the models at a time when answers are scored


@dataclass(frozen=True)
class Answer:
    """One model's answer to one prompt. `reverse_kl` and what follows it are summed over its tokens, see
    `minillm.rollout.score.Alignment`; None without a teacher. `logprobs`: the smallest and the largest log-prob of its
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
    logprobs: tuple[float, float] | None = field(default=None, repr=False)

    def row(self) -> dict:
        """For JSON lines and tables."""
        row = asdict(self)
        for name in ("logprobs", *_ALIGNED[1:]):
            del row[name]
        row["n_tokens"] = len(row.pop("tokens"))
        return row


def answer_prompts(
    model: LanguageModel,
    prompts: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seeds: Sequence[int] | None,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: tuple[int, ...],
    teacher: LanguageModel | None = None,
    rows: Sequence[int] | None = None,
    temperature: float = 1.0,
    no_repeat_ngram_size: int = 0,
    group: Group = ALONE,
    interrupt: Callable[[], None] | None = None,
    asking: Callable[[], AbstractContextManager] = nullcontext,
) -> list[Answer]:
    """One answer a prompt and seed, seed by seed in the order of the prompts; greedy ones where `seeds` is None.

    `rows` chooses some of the prompts. The ranks of `group` share the work, and each gets all answers.
    `no_repeat_ngram_size`, `interrupt`: see `decode`; `asking`: around the teacher's passes, on every rank. The reverse
    KL is that of the models' own distributions at T = 1, whatever temperature and n-gram limit the answers were drawn
    with.

    A prompt's random stream depends on seed and prompt number only: not on the batch, nor on what was trained.
    """
    rows = range(len(prompts)) if rows is None else rows
    asked = group.share([(seed, row) for seed in ((None,) if seeds is None else seeds) for row in rows])
    if not asked:
        with asking():
            return group.join([])
    batch = prompts.batch([row for _, row in asked]).to(model.device)
    rollout = decode(
        model,
        None,
        batch,
        seeds=None if seeds is None else [seed_for(seed, "evaluation", row) for seed, row in asked],
        batch_size=batch_size,
        stop_ids=stop_ids,
        pad_id=prompts.pad_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        no_repeat_ngram_size=no_repeat_ngram_size,
        interrupt=interrupt,
    )
    aligned: dict[str, list[float]] = {}
    with asking():
        if teacher:
            found = rollout_alignment(model, teacher, rollout, LinearLoss(), max_tokens=_MAX_TOKENS)
            aligned = {name: getattr(found, f"{name}_BR").sum(-1).tolist() for name in _ALIGNED}
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
            answer=tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False),
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
    references = Rollout(batch.ids_BP, batch.mask_BP, batch.reference_ids_BR, batch.reference_mask_BR)
    losses_B, width = torch.zeros(len(prompts), dtype=torch.float64), batch.reference_ids_BR.shape[1]
    for micro in group.share(micro_batches(references, _MAX_TOKENS)):
        logprobs_N = LinearLoss().logprobs(micro.side(model), micro.take(references.response_ids_BR))
        losses_B.index_add_(0, (micro.token_N // width).cpu(), -logprobs_N.double().cpu())
    shares = group.join([losses_B.tolist()])
    return [sum(each) for each in zip(*shares, strict=True)], batch.reference_mask_BR.sum(-1).tolist()


def reference_loss(model: LanguageModel, prompts: PromptSet, group: Group = ALONE) -> float:
    """Language-modelling loss on the references (the first of each prompt), nats a token over all tokens."""
    losses, tokens = reference_losses(model, prompts, group)
    return sum(losses) / sum(tokens)


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
    kept = vars(answer).get(figure.key)
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
