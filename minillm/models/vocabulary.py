"""Do student and teacher speak the same tokens? Which rows, ends and templates do they share?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

from minillm.common.errors import ModelError


@dataclass(frozen=True)
class Tokens:
    """One model's tokenizer and head: tokens that the tokenizer knows, rows of the head, the end of an answer."""

    tokens: int
    rows: int
    eos: str | None
    eos_id: int | None
    chat_template: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, rows: int) -> Tokens:
        return cls(len(tokenizer), rows, tokenizer.eos_token, tokenizer.eos_token_id, bool(tokenizer.chat_template))


@dataclass(frozen=True)
class Vocabulary:
    """What student and teacher share: the first `shared` rows mean the same token in both. `beyond` counts the ids from
    there on that only one tokenizer knows, or that are different tokens; no teacher where a model is alone; `others`
    are further teachers. `separate`: each has its own tokens, and `shared` are those of the student."""

    student: Tokens
    teacher: Tokens | None
    shared: int
    beyond: int = 0
    same_template: bool = True
    others: tuple[Tokens, ...] = ()
    separate: bool = False


def compare_vocabularies(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase | None,
    student_rows: int,
    teacher_rows: int,
) -> Vocabulary:
    """Compare two tokenizers token by token, for heads of so many rows; without a teacher, look at the student's end.

    Families pad their embeddings differently (Qwen2.5: 152,064 and 151,936 rows) or add a token at the end; both
    heads are cut to the smaller number. Raises ModelError with every problem.
    """
    own, other, rows = Tokens.of(student, student_rows), None, student_rows
    sizes, differing, problems = f"student: {own.tokens} tokens, {rows} rows", [], []
    if teacher is not None:
        other, rows = Tokens.of(teacher, teacher_rows), min(student_rows, teacher_rows)
        sizes += f"; teacher: {other.tokens} tokens, {teacher_rows} rows"
        ours, theirs = ({index: token for token, index in each.get_vocab().items()} for each in (student, teacher))
        differing = [index for index in sorted(ours.keys() | theirs.keys()) if ours.get(index) != theirs.get(index)]
    change = (
        "use a student and a teacher of one family (model.student, model.teacher), or train by objective=spans with "
        "model.tokenizers=separate"
    )
    if inside := [index for index in differing if index < rows]:
        first = inside[0]
        problems.append(
            f"student and teacher do not share a vocabulary: {len(inside)} of the first {rows} tokens differ, the "
            f"first at id {first}: {ours.get(first)!r} and {theirs.get(first)!r} ({sizes}); {change}"
        )
    if other and own.eos_id != other.eos_id:
        problems.append(
            f"student and teacher end an answer differently: {own.eos!r} (id {own.eos_id}) and {other.eos!r} "
            f"(id {other.eos_id}); {change} that agree on eos_token"
        )
    if own.eos_id is None or own.eos_id >= rows:
        problems.append(
            f"no usable eos token: id {own.eos_id} with {rows} rows ({sizes}); set the tokenizer's eos_token"
        )
    if problems:
        raise ModelError("\n".join(problems))
    same_template = other is None or student.chat_template == teacher.chat_template
    return Vocabulary(own, other, rows, len(differing), same_template)


def separate_vocabularies(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_rows: int, teacher_rows: int
) -> Vocabulary:
    """Of models that keep a tokenizer each. Rows that no token of the tokenizer names are cut: such an id writes no
    text, so that the teacher could not see it. Raises ModelError: a tokenizer is not a fast one, or has no eos."""
    named = {"student": (student, student_rows), "teacher": (teacher, teacher_rows)}
    slow = [side for side, (tokenizer, _) in named.items() if not getattr(tokenizer, "is_fast", False)]
    if slow:
        raise ModelError(
            f"model.tokenizers=separate: the tokenizer of the {' and the '.join(slow)} has no tokenizer.json, which "
            "says what text a token writes; use another model.student or model.teacher"
        )
    own, other = (
        compare_vocabularies(tokenizer, None, min(rows, len(tokenizer)), 0).student
        for tokenizer, rows in named.values()
    )
    return Vocabulary(own, other, own.rows, separate=True)


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """An answer as text, without its end, which need not be a special token."""
    ids = ids[:-1] if len(ids) and ids[-1] in stop_ids else ids
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_ids(tokenizer: PreTrainedTokenizerBase, *stated: GenerationConfig | None, n_vocab: int) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's eos and those of the models' generation configs (Llama 3 and Qwen
    have several). No other default of a generation config is used."""
    stops = {tokenizer.eos_token_id}
    for config in filter(None, stated):
        eos = config.eos_token_id
        stops.update(eos if isinstance(eos, list | tuple) else [eos])
    return tuple(sorted(stop for stop in stops if stop is not None and stop < n_vocab))
