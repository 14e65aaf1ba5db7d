"""Rollouts: one pass of decoding yields the tokens and the log-probability of each under student and teacher.

Axes: B rows in the batch, P prompt and R response positions, V shared vocabulary, H teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from minillm.errors import check
from minillm.losses import log_softmax, mixture_logprobs, raise_half
from minillm.models import LanguageModel
from minillm.seeding import row_uniforms
from minillm.types import PromptBatch, Rollout


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """One draw a row: the first token whose cumulative probability exceeds u. [B, V], [B] in [0, 1) -> [B] int64.

    Some 40 times as fast as torch.multinomial on a CPU, and a token of probability 0 is never drawn.
    """
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:]
    # Below the total even where u * total rounds up to it.
    target = torch.minimum(uniforms.to(cdf).unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)


class _Stream:
    """One model's side of decoding: its cache, and the hidden state that predicts the next token."""

    def __init__(self, model: LanguageModel, ids_BP: Tensor, mask_BP: Tensor):
        self.model, self.cache = model, DynamicCache(config=model.network.config)
        self.hidden_BH = model.hidden(ids_BP, mask_BP, self.cache)[:, -1]

    def logits(self, temperature: float) -> Tensor:
        return raise_half(self.model.logits(self.hidden_BH)) / temperature

    def advance(self, ids_B: Tensor, mask_BK: Tensor) -> None:
        self.hidden_BH = self.model.hidden(ids_B.unsqueeze(-1), mask_BK, self.cache)[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.hidden_BH = self.hidden_BH[rows]


@torch.no_grad()
def decode(
    student: LanguageModel | None,
    teacher: LanguageModel | None,
    prompts: PromptBatch,
    *,
    stop_ids: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int,
    seeds: list[int] | None,
    alpha: float = 0.0,
    temperature: float = 1.0,
) -> Rollout:
    """Answer every prompt of one batch, token by token from alpha p + (1 - alpha) q.

    Only the models that are given run: the student alone with alpha 0, the teacher alone with alpha 1. Each leaves the
    log-probs of the chosen tokens, and the teacher the hidden states its logits come from, so nobody has to run it
    again. seeds: one random stream a row; None decodes greedily. A row ends at its first stop token, which counts, or
    at `max_new_tokens`.
    """
    device, n_rows = prompts.ids_BP.device, len(prompts)
    uniforms_BR = None if seeds is None else row_uniforms(seeds, max_new_tokens).to(device)
    stops = torch.tensor(stop_ids, device=device)
    models = {"student": student, "teacher": teacher}
    streams = {
        name: _Stream(model, prompts.ids_BP, prompts.mask_BP) for name, model in models.items() if model is not None
    }

    out = {"ids": torch.full((n_rows, max_new_tokens), pad_id, device=device)}
    out["mask"] = torch.zeros(n_rows, max_new_tokens, dtype=torch.bool, device=device)
    rows = torch.arange(n_rows, device=device)  # which prompts are still in the batch
    mask_BK = torch.cat([prompts.mask_BP, out["mask"]], dim=1)
    n_prompt = prompts.ids_BP.shape[1]

    def store(name: str, t: int, values: Tensor) -> None:
        if name not in out:
            out[name] = values.new_zeros(n_rows, max_new_tokens, *values.shape[1:])
        out[name][rows, t] = values

    for t in range(max_new_tokens):
        logprobs = {name: log_softmax(stream.logits(temperature)) for name, stream in streams.items()}
        if len(streams) == 2:
            mixed_BV = mixture_logprobs(logprobs["student"], logprobs["teacher"], alpha)
        else:
            (mixed_BV,) = logprobs.values()
        ids = mixed_BV.argmax(-1) if uniforms_BR is None else inverse_cdf(mixed_BV.exp(), uniforms_BR[rows, t])
        store("ids", t, ids)
        store("mask", t, torch.ones_like(ids, dtype=torch.bool))
        for name, each in logprobs.items():
            store(name, t, each.gather(-1, ids.unsqueeze(-1)).squeeze(-1))
        if teacher is not None:
            store("hidden", t, streams["teacher"].hidden_BH)

        alive = ~torch.isin(ids, stops)
        if t + 1 == max_new_tokens or not alive.any():
            break
        if not alive.all():  # finished rows leave the batch
            keep = alive.nonzero().squeeze(-1)
            rows, ids, mask_BK = rows[keep], ids[keep], mask_BK[keep]
            for stream in streams.values():
                stream.keep(keep)
        mask_BK[:, n_prompt + t] = True
        for stream in streams.values():
            stream.advance(ids, mask_BK[:, : n_prompt + t + 1])

    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BR=out["ids"],
        response_mask_BR=out["mask"],
        student_logprobs_BR=out.get("student"),
        teacher_logprobs_BR=out.get("teacher"),
        teacher_hidden_BRH=out.get("hidden"),
        alpha=alpha,
        temperature=temperature,
    )


@dataclass(frozen=True)
class Sampler:
    """The config group `sampler`. `alpha` is the teacher's share in p~ = alpha p + (1 - alpha) q (paper, section 2.2;
    0 samples from the student alone); lengths in tokens; `batch_size` rows are decoded at a time."""

    alpha: float = 0.2
    temperature: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 32

    def __post_init__(self):
        check(
            (0 <= self.alpha < 1, f"alpha={self.alpha}: wanted a number in [0, 1); 0 samples from the student alone"),
            (self.temperature > 0, f"temperature={self.temperature}: wanted a number above 0"),
            (self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens}: wanted a positive number of tokens"),
            (self.batch_size > 0, f"batch_size={self.batch_size}: wanted a positive number of rows"),
        )

    def rollout(
        self,
        student: LanguageModel,
        teacher: LanguageModel,
        prompts: PromptBatch,
        seeds: list[int],
        *,
        stop_ids: tuple[int, ...],
        pad_id: int,
    ) -> Rollout:
        """Answers for all prompts. With alpha 0 the teacher takes no part; see `scoring.with_teacher`."""
        return decode_all(
            student,
            teacher if self.alpha else None,
            prompts,
            seeds=seeds,
            batch_size=self.batch_size,
            stop_ids=stop_ids,
            pad_id=pad_id,
            max_new_tokens=self.max_new_tokens,
            alpha=self.alpha,
            temperature=self.temperature,
        )


def decode_all(
    student: LanguageModel | None,
    teacher: LanguageModel | None,
    prompts: PromptBatch,
    *,
    seeds: list[int] | None,
    batch_size: int,
    **settings,
) -> Rollout:
    """`decode` in batches of `batch_size` rows, joined and trimmed to the longest answer."""
    parts = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(decode(student, teacher, prompts.rows(rows), seeds=seeds and seeds[rows], **settings))
    names = [name for name, value in vars(parts[0]).items() if isinstance(value, Tensor)]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined).trimmed()
