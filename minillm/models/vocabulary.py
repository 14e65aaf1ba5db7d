"""Do student and teacher speak the same tokens? Which rows, ends and templates do they share?"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

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
class Ends:
    """The generation config of a model, which states tokens that end an answer, and the rows of its head."""

    generation_config: GenerationConfig
    rows: int


@dataclass(frozen=True)
class Vocabulary:
    """What student and teacher share: the first `shared` rows mean the same token in both. `beyond` counts the ids from
    there on that only one tokenizer knows, or that are different tokens; no teacher where a model is alone."""

    student: Tokens
    teacher: Tokens | None
    shared: int
    beyond: int = 0
    same_template: bool = True


def compare_vocabularies(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_rows: int, teacher_rows: int
) -> Vocabulary:
    """Compare two tokenizers token by token, for heads of so many rows.

    Families pad their embeddings differently (Qwen2.5: 152,064 and 151,936 rows) or add a token at the end; both
    heads are cut to the smaller number.

    Raises:
        ModelError: with every problem: tokens below that number differ, the two end an answer with different tokens,
            or with one that is not among the shared rows.
    """
    rows = min(student_rows, teacher_rows)
    sides = Tokens.of(student, student_rows), Tokens.of(teacher, teacher_rows)
    sizes = "; ".join(
        f"{name}: {side.tokens} tokens, {side.rows} rows"
        for name, side in zip(("student", "teacher"), sides, strict=True)
    )
    change = "use a student and a teacher of one family (model.student, model.teacher)"
    ours, theirs = (
        {index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (student, teacher)
    )
    differing = [index for index in sorted(ours.keys() | theirs.keys()) if ours.get(index) != theirs.get(index)]
    inside = [index for index in differing if index < rows]
    problems = []
    if inside:
        first = inside[0]
        problems.append(
            f"student and teacher do not share a vocabulary: {len(inside)} of the first {rows} tokens differ, the "
            f"first at id {first}: {ours.get(first)!r} and {theirs.get(first)!r} ({sizes}); {change}"
        )
    if student.eos_token_id != teacher.eos_token_id:
        problems.append(
            f"student and teacher end an answer differently: {student.eos_token!r} (id {student.eos_token_id}) and "
            f"{teacher.eos_token!r} (id {teacher.eos_token_id}); {change} that agree on eos_token"
        )
    if no_end := _no_end(sides[0], f"{rows} shared rows ({sizes})", rows):
        problems.append(no_end)
    if len(problems) > 1:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ModelError(f"{len(problems)} problems of student and teacher:{lines}")
    if problems:
        raise ModelError(problems[0])
    return Vocabulary(*sides, rows, len(differing), student.chat_template == teacher.chat_template)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Of a model alone, with a head of so many rows. Raises ModelError: no token ends its answers."""
    side = Tokens.of(tokenizer, rows)
    if no_end := _no_end(side, f"{side.tokens} tokens, {rows} rows", rows):
        raise ModelError(no_end)
    return Vocabulary(side, None, rows)


def _no_end(side: Tokens, sizes: str, rows: int) -> str | None:
    if side.eos_id is not None and side.eos_id < rows:
        return None
    return f"no usable eos token: id {side.eos_id} with {sizes}; set eos_token in the tokenizer's directory"


def stop_ids(tokenizer: PreTrainedTokenizerBase, *networks: PreTrainedModel | Ends, n_vocab: int) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's eos and those of the generation configs (Llama 3 and Qwen have
    several). No other default of a generation config is used."""
    stops = {tokenizer.eos_token_id}
    for network in networks:
        eos = network.generation_config.eos_token_id if network.generation_config else None
        stops.update(eos if isinstance(eos, list | tuple) else [eos])
    return tuple(sorted(stop for stop in stops if stop is not None and stop < n_vocab))
