"""Tokenised prompts, ready to be padded into batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minillm.common.console import tracked
from minillm.common.errors import DataError
from minillm.common.types import PromptBatch
from minillm.data.records import Dropped, Record
from minillm.data.templates import LOST, Encoder
from minillm.data.text import UNWRITABLE, PlainText

# Reasons to drop a prompt.
HELD_OUT, BEYOND = "also a validation prompt", "beyond data.val_size"
NO_RESPONSE, NO_TOKENS = "without a response (key output)", "no tokens: the template renders nothing"
OUTSIDE, LONGER = "a token outside the shared vocabulary", "longer than"
_REMEDIES = {
    HELD_OUT: "data.val_size or data.val_file",
    NO_RESPONSE: "the file: its rows need an answer (key output, or a last turn of the assistant)",
    NO_TOKENS: "data.template",
    LOST: "data.template, or the roles in the file",
    UNWRITABLE: "the file",
    OUTSIDE: "the file or the pair: its tokens are beyond what both models have rows for",
    LONGER: "data.max_prompt_tokens",
}
_BATCH = 1000  # records that are tokenised at a time
log = logging.getLogger(__name__)


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """ids [B, T] and mask [B, T]; the only place that pads, and the mask comes from lengths, never from ids."""
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        columns = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, columns] = torch.tensor(tokens, dtype=torch.long)
        mask[row, columns] = True
    return ids, mask


@dataclass(frozen=True)
class PromptSet:
    """Records with their prompt ids, and reference ids (the first reference with its end token) where there are any.
    `teacher_ids`: the prompts that the teacher sees, None where it sees the same; `teachers` numbers several."""

    records: tuple[Record, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    reference_ids: tuple[tuple[int, ...], ...]
    teacher_ids: tuple[tuple[int, ...], ...] | None = field(kw_only=True, default=None)
    teachers: tuple[int, ...] | None = field(kw_only=True, default=None)
    pad_id: int
    dropped: Counter
    references_cut: int = 0  # for their length, so that they have no end token

    def __len__(self) -> int:
        return len(self.records)

    def digest(self) -> str:
        """Hash of the token ids of prompts and references, order included, and of which teacher each has."""
        own = [each for each in (self.teacher_ids, self.teachers) if each is not None]
        return hashlib.sha256(json.dumps([self.prompt_ids, self.reference_ids, *own]).encode()).hexdigest()[:24]

    @property
    def for_teacher(self) -> PromptSet:
        """As the teacher sees it."""
        return self if self.teacher_ids is None else replace(self, prompt_ids=self.teacher_ids, teacher_ids=None)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, of the student or the teacher."""
        return max(map(len, (*self.prompt_ids, *(self.teacher_ids or ()))))

    @property
    def has_references(self) -> bool:
        return all(record.references for record in self.records)

    def batch(self, rows: Sequence[int], index: int = 0, with_references: bool = False) -> PromptBatch:
        """The chosen prompts, left padded to the longest; with_references also their references, right padded."""
        seen = [each for each in (self.prompt_ids, self.teacher_ids) if each is not None]
        ids, mask = pad([each[row] for each in seen for row in rows], self.pad_id, left=True)  # of one width
        (ids_BP, *teacher_ids), (mask_BP, *teacher_mask) = (each.split(len(rows)) for each in (ids, mask))
        references = (None, None)
        if with_references:
            references = pad([self.reference_ids[row] for row in rows], self.pad_id, left=False)
        numbers = None if self.teachers is None else torch.tensor([self.teachers[row] for row in rows])
        seen = (*references, *teacher_ids, *teacher_mask)
        return PromptBatch(ids_BP, mask_BP, torch.tensor(list(rows)), index, *seen, teachers_B=numbers)


def build_prompts(
    records: Sequence[Record],
    encode: Encoder,
    tokenizer,
    *,
    pad_id: int,
    n_vocab: int,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_tokens: int | None = None,
    exclude: Sequence[Record] = (),
    answered: bool = False,
    teacher: Encoder | None = None,
    n_teacher: int | None = None,
    name: str = "prompts",
) -> PromptSet:
    """Tokenise; drop and count prompts that are too long (never cut: the end would be lost), that stand in `exclude` or
    that `encode` drops, and with `answered` those that have no response. `teacher` encodes the prompts that the teacher
    sees, of `n_teacher` tokens if they are not the student's; of the two the longer one counts.

    References longer than `max_response_tokens`, or than `max_tokens` together with their prompt, are cut there,
    without an end token; nor is there one for those that are truncated already.

    Raises:
        DataError: nothing is left.
    """
    held_out = {_question(record) for record in exclude}
    plain, eos = PlainText(tokenizer), tokenizer.eos_token_id
    kept, dropped, first, n_cut = [], Counter(), {}, 0
    parts = [records[at : at + _BATCH] for at in range(0, len(records), _BATCH)]
    for batch in tracked(parts, f"Tokenising {name}"):
        used = []
        for record in batch:
            if _question(record) in held_out:
                dropped[HELD_OUT] += 1
            elif answered and not record.references:
                dropped[NO_RESPONSE] += 1
            else:
                used.append(record)
        answers = plain.many([record.references[0] if record.references else "" for record in used])
        prompts = encode(used)
        theirs = prompts if teacher is None else teacher(used)
        for record, prompt, own, answer in zip(used, prompts, theirs, answers, strict=True):
            if refused := next((each for each in (prompt, own, answer) if isinstance(each, Dropped)), None):
                dropped[first.setdefault(str(refused), f"{refused}, the first at {record.id}")] += 1
                continue
            whole = (*answer, eos) if record.references and not record.truncated else tuple(answer)
            longer = max(len(prompt), len(own))
            room = max_response_tokens if max_tokens is None else min(max_response_tokens, max_tokens - longer)
            reference = whole[:room]
            if not prompt or not own:
                dropped[NO_TOKENS] += 1
            elif longer > max_prompt_tokens:
                dropped[f"{LONGER} {max_prompt_tokens} tokens"] += 1
            elif max((*prompt, *reference)) >= n_vocab or max(own) >= (n_teacher or n_vocab):
                dropped[OUTSIDE] += 1
            elif answered and not reference:  # cut off before its first word
                dropped[NO_RESPONSE] += 1
            else:
                kept.append((record, tuple(prompt), reference, tuple(own)))
                n_cut += record.truncated or len(whole) > len(reference)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    log.info("%s: %d kept of %d%s", name, len(kept), len(records), f" (dropped: {reasons})" if reasons else "")
    if not kept:
        raise DataError(f"{name}: none of {len(records)} prompts is left ({reasons}); change {remedies(dropped)}")
    *columns, own = (tuple(column) for column in zip(*kept, strict=True))
    own = None if own == columns[1] else own
    return PromptSet(*columns, teacher_ids=own, pad_id=pad_id, dropped=dropped, references_cut=n_cut)


def _question(record: Record) -> tuple:
    """What makes two prompts the same one: neither white space at the ends, nor whether an input stands by itself or
    below its instruction."""
    history = tuple((role, text.strip()) for role, text in record.history)
    return history, "\n\n".join(filter(None, (record.instruction.strip(), record.input.strip())))


def remedies(reasons: Iterable[str]) -> str:
    """What to change where prompts are dropped for these reasons."""
    return ", or ".join(text for start, text in _REMEDIES.items() if any(each.startswith(start) for each in reasons))
