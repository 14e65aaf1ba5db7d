"""What a teacher with tokens of its own says about the student's answers: log-probs of spans of their text.

Spans of the text that begin and end together in both models' tokens are units, and so is the end of the answer. The
teacher reads the text in the tokens that its tokenizer makes of it (its canonical ones), after its own prompt.

Axes: B rows, R positions of the student's answer, K of the teacher's.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.common.types import Rollout
from minillm.data.prompts import pad
from minillm.data.records import Dropped
from minillm.data.text import PlainText
from minillm.models import LanguageModel, Pair
from minillm.models.families import too_long
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout.score import answer_logprobs

_WORD = re.compile(r"(?<=\S) (?=\w)")  # where a word begins that is not the first
_WORDS = ["a", " b", " a", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", " 2"]


@dataclass(frozen=True)
class Alignment:
    """`theirs`: the teacher's tokens of the text. `units`: after each unit, how many tokens of student and teacher have
    ended, from (0, 0) on. `settled`: for each token of the student, and for its stop token, how many units neither it
    nor a later one can change any more."""

    theirs: list[int]
    units: list[tuple[int, int]]
    settled: list[int]


def token_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[int | None]] | None:
    """The text that the tokens write, and the byte of it where each ends, None inside a character. None where they
    write no text, because their bytes are cut inside a character."""
    core, stream, at, ends = tokenizer.backend_tokenizer, DecodeStream(skip_special_tokens=False), 0, []
    for id in ids:
        piece = stream.step(core, id)  # of its own decoder, as soon as a character is whole
        at += len((piece or "").encode())
        ends.append(at if piece else None)
    text = core.decode(list(ids), skip_special_tokens=False)
    if "\N{REPLACEMENT CHARACTER}" in text or at != len(text.encode()):
        return None
    return text, [*ends[:-1], at] if ends else []


def aligned(
    rows: Sequence[Sequence[int]], student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> list[Alignment | None]:
    """Align answers, given as the student's tokens without the end. None where the student's tokens write no text, or
    the teacher's another one (a character that it does not know, a control token)."""
    plain = PlainText(teacher)
    own = [token_ends(student, ids) for ids in rows]
    theirs = iter(plain.many([each[0] for each in own if each is not None]))
    whole, *parts = plain.ids(["".join(_WORDS), *_WORDS])
    by_word = whole == [id for part in parts for id in part]
    return [each and _align(*each, next(theirs), teacher, by_word) for each in own]


def _align(
    text: str, ends: list[int | None], theirs: list[int] | Dropped, teacher: PreTrainedTokenizerBase, by_word: bool
) -> Alignment | None:
    """by_word: the teacher's tokens of the words before a word do not depend on what follows."""
    found = None if isinstance(theirs, Dropped) else token_ends(teacher, theirs)
    if found is None or found[0] != text:
        return None
    own, other = ({end: n for n, end in enumerate(each, 1) if end is not None} for each in (ends, found[1]))
    both = sorted(own.keys() & other.keys())
    units = [(0, 0), *((own[end], other[end]) for end in both)]
    if not both and ends:  # tokens without a text
        both, units = [0], [(0, 0), (len(ends), len(theirs))]
    words = list(_WORD.finditer(text)) if by_word else []
    cuts = [len(text[: each.start()].encode()) for each in words]
    known = [len(text[: each.end() + 1].encode()) for each in words]
    begins = accumulate(ends, lambda last, end: last if end is None else end, initial=0)
    last = [bisect_right(known, begin) for begin in begins]
    return Alignment(theirs, units, [bisect_right(both, cuts[n - 1]) if n else 0 for n in last])


@torch.no_grad()
def with_spans(
    rollout: Rollout, student: LanguageModel, pair: Pair, linear_loss: LinearLoss, *, max_tokens: int
) -> Rollout:
    """The rollout as a teacher with tokens of its own sees it. `max_tokens` go through a model at a time.

    `teacher_logprobs_BR` are such that teacher - student is 0 but at the last token of each unit, where it is log p -
    log q of the unit. The end is any stop token against any stop token; an answer that reached its limit has none.
    `spans_BR2` are for each token the last token of its unit and the first token of the units that it can still change.
    An answer that cannot be aligned, or is too long for the teacher, is dropped: its response mask is empty.
    """
    ids, mask_BR = rollout.response_ids_BR.tolist(), rollout.response_mask_BR
    counts, seen, limit = mask_BR.sum(-1).tolist(), rollout.for_teacher, dict(max_tokens=max_tokens)
    ended = [ids[row][n - 1] in pair.stop_ids for row, n in enumerate(counts)]
    texts = [each[: n - end] for each, n, end in zip(ids, counts, ended, strict=True)]
    found = aligned(texts, pair.tokenizer, pair.teacher_tokenizer)
    theirs = [
        [*each.theirs, *pair.teacher_stop_ids[:end]] if each else [] for each, end in zip(found, ended, strict=True)
    ]
    lengths = [n + len(each) for n, each in zip(seen.prompt_mask_BP.sum(-1).tolist(), theirs, strict=True)]
    kept = [
        each is not None and too_long(pair.teacher.network.config, length) is None
        for each, length in zip(found, lengths, strict=True)
    ]
    theirs = [each if keep else [] for each, keep in zip(theirs, kept, strict=True)]
    their_ids, their_mask = (each.to(mask_BR.device) for each in pad(theirs, 0, left=False))
    answers = Rollout(seen.prompt_ids_BP, seen.prompt_mask_BP, their_ids, their_mask, temperature=rollout.temperature)
    own_BR, logp_BK = rollout.student_logprobs_BR, torch.zeros_like(their_ids, dtype=torch.float64)
    if any(theirs):
        logp_BK, _ = answer_logprobs(pair.teacher, answers, linear_loss, alike=pair.teacher_stop_ids, **limit)
    if len(pair.stop_ids) > 1 and any(ended):
        own_BR, _ = answer_logprobs(student, rollout, linear_loss, alike=pair.stop_ids, **limit)
    mask_BR = mask_BR & torch.tensor(kept, device=mask_BR.device).unsqueeze(-1)
    logp, logq = (_sums(each) for each in (logp_BK, torch.where(mask_BR, own_BR, 0.0)))
    rewards_BR, spans_BR2 = torch.zeros(mask_BR.shape, dtype=torch.float64), torch.zeros(*mask_BR.shape, 2).long()
    for row, each in enumerate(found):
        if not kept[row]:
            continue
        units = [*each.units, (counts[row], len(theirs[row]))] if ended[row] else each.units
        for (first, k), (end, k_end) in pairwise(units):
            rewards_BR[row, end - 1] = (logp[row][k_end] - logp[row][k]) - (logq[row][end] - logq[row][first])
            spans_BR2[row, first:end, 0] = end - 1
        first = [units[n][0] for n in each.settled][: counts[row]]
        spans_BR2[row, : len(first), 1] = torch.tensor(first)
    teacher_BR = rollout.student_logprobs_BR + rewards_BR.to(rollout.student_logprobs_BR)
    found = dict(teacher_logprobs_BR=teacher_BR, spans_BR2=spans_BR2.to(mask_BR.device))
    return replace(rollout, response_mask_BR=mask_BR, **found)


def _sums(logprobs_BR: Tensor) -> list[list[float]]:
    """Of the first 0, 1, ... R tokens of each row."""
    return torch.nn.functional.pad(logprobs_BR.double().cumsum(-1), (1, 0)).tolist()
