"""Answer held-out prompts and measure the answers: the validation of a run and evaluate.py share this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from transformers import PreTrainedTokenizerBase

from minillm.data import PromptSet
from minillm.linear_loss import LinearLoss
from minillm.metrics import distinct_n, exact_match, rouge_l
from minillm.models import LanguageModel
from minillm.sampling import decode
from minillm.scoring import rollout_reverse_kl
from minillm.seeding import seed_for

_MAX_TOKENS = 2048  # through the models at a time when answers are scored


@dataclass(frozen=True)
class Answer:
    """One model's answer to one prompt. `reverse_kl` is summed over its tokens, in nats; None without a teacher."""

    id: str
    seed: int | None
    prompt: str
    answer: str
    tokens: tuple[int, ...] = field(repr=False)
    truncated: bool
    reverse_kl: float | None = None

    def row(self) -> dict:
        """For JSON lines and tables."""
        row = asdict(self)
        row["n_tokens"] = len(row.pop("tokens"))
        return row


def answer_prompts(
    model: LanguageModel,
    prompts: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int | None,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: tuple[int, ...],
    teacher: LanguageModel | None = None,
) -> list[Answer]:
    """One answer a prompt, in the order of the prompts: sampled at T = 1 with `seed`, or greedy where it is None.

    A prompt's random stream depends on seed and prompt number only: not on the batch, nor on what was trained.
    """
    batch = prompts.batch(range(len(prompts))).to(model.device)
    rollout = decode(
        model,
        None,
        batch,
        seeds=None if seed is None else [seed_for(seed, "evaluation", row) for row in range(len(prompts))],
        batch_size=batch_size,
        stop_ids=stop_ids,
        pad_id=prompts.pad_id,
        max_new_tokens=max_new_tokens,
    )
    kl_B = [None] * len(prompts)
    if teacher:
        kl_B = rollout_reverse_kl(model, teacher, rollout, LinearLoss(), max_tokens=_MAX_TOKENS).sum(-1).tolist()
    answers = []
    for row, record in enumerate(prompts.records):
        tokens = rollout.response_ids_BR[row][rollout.response_mask_BR[row]].tolist()
        answer = Answer(
            id=record.id,
            seed=seed,
            prompt=record.question,
            answer=tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            tokens=tuple(tokens),
            truncated=tokens[-1] not in stop_ids,
            reverse_kl=kl_B[row],
        )
        answers.append(answer)
    return answers


def summarise(answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Figures of a set of answers; `references` in the same order.

    reverse_kl: nats a token, pooled over all tokens. rouge_l, exact_match: percent, mean over answers. length: mean
    tokens, end token included. truncated: share that reached the cap. distinct_4: share of different 4-grams.
    """
    n_tokens = sum(len(answer.tokens) for answer in answers)
    pairs = list(zip(answers, references, strict=True))
    figures = {
        "rouge_l": sum(rouge_l(answer.answer, texts) for answer, texts in pairs) / len(answers),
        "exact_match": sum(exact_match(answer.answer, texts) for answer, texts in pairs) / len(answers),
        "length": n_tokens / len(answers),
        "truncated": sum(answer.truncated for answer in answers) / len(answers),
        "distinct_4": distinct_n((answer.tokens for answer in answers), 4),
        "tokens": float(n_tokens),
    }
    if all(answer.reverse_kl is not None for answer in answers):
        figures["reverse_kl"] = sum(answer.reverse_kl for answer in answers) / n_tokens
    return figures
