"""Do student and teacher speak the same tokens? Which rows, ends and templates do they share?"""

from __future__ import annotations

import logging

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.errors import ModelError

log = logging.getLogger(__name__)


def shared_rows(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_rows: int, teacher_rows: int
) -> int:
    """The number of vocabulary rows that mean the same token in both models.

    Families pad their embeddings differently (Qwen2.5: 152,064 and 151,936 rows) or add a token at the end; both
    heads are cut to the smaller number.

    Raises:
        ModelError: a token below that number differs, or the two end an answer with different tokens.
    """
    rows = min(student_rows, teacher_rows)
    sizes = f"student: {len(student)} tokens, {student_rows} rows; teacher: {len(teacher)} tokens, {teacher_rows} rows"
    change = "use a student and a teacher of one family (model.student, model.teacher)"
    ours, theirs = (
        {index: token for token, index in tokenizer.get_vocab().items() if index < rows}
        for tokenizer in (student, teacher)
    )
    differing = [index for index in sorted(ours.keys() | theirs.keys()) if ours.get(index) != theirs.get(index)]
    if differing:
        first = differing[0]
        raise ModelError(
            f"student and teacher do not share a vocabulary: {len(differing)} of the first {rows} tokens differ, the "
            f"first at id {first}: {ours.get(first)!r} and {theirs.get(first)!r} ({sizes}); {change}"
        )
    if student.eos_token_id != teacher.eos_token_id:
        raise ModelError(
            f"student and teacher end an answer differently: {student.eos_token!r} (id {student.eos_token_id}) and "
            f"{teacher.eos_token!r} (id {teacher.eos_token_id}); {change} that agree on eos_token"
        )
    if student.eos_token_id is None or student.eos_token_id >= rows:
        raise ModelError(
            f"no usable eos token: id {student.eos_token_id} with {rows} shared rows ({sizes}); set eos_token in "
            "the tokenizer's directory"
        )
    if student.chat_template != teacher.chat_template:
        log.warning("Student and teacher have different chat templates; prompts are written with the student's.")
    return rows


def stop_ids(tokenizer: PreTrainedTokenizerBase, *networks: PreTrainedModel, n_vocab: int) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's eos and those of the generation configs (Llama 3 and Qwen have
    several). No other default of a generation config is used."""
    stops = {tokenizer.eos_token_id}
    for network in networks:
        eos = network.generation_config.eos_token_id if network.generation_config else None
        stops.update(eos if isinstance(eos, list | tuple) else [eos])
    return tuple(sorted(stop for stop in stops if stop is not None and stop < n_vocab))
