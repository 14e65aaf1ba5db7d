"""Padding with explicit masks; prompts dropped and counted, never cut."""

import logging
import random

import pytest

from minillm.common.errors import ConfigError, DataError
from minillm.data import Record, Sources, build_prompts
from minillm.data.prompts import pad


def prompts(records, **options):
    def encode(records):
        return [list(map(int, record.instruction.split())) for record in records]

    class Words:
        eos_token_id, bos_token_id, unk_token_id, all_special_ids, added_tokens_decoder = 0, None, None, [], {}
        is_fast = False

        def __call__(self, texts, **options):
            return {"input_ids": [list(map(int, text.split())) for text in texts]}

    defaults = dict(pad_id=0, n_vocab=50, max_prompt_tokens=3, max_response_tokens=3)
    return build_prompts(records, encode, Words(), **defaults | options)


def test_padding_is_explicit_even_where_pad_is_eos_and_eos_is_inside():
    ids, mask = pad([[5, 0, 7], [6]], 0, left=True)
    assert ids.tolist() == [[5, 0, 7], [0, 0, 6]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    ids, mask = pad([[5, 0], [6]], 0, left=False)
    assert ids.tolist() == [[5, 0], [6, 0]] and mask.tolist() == [[True, True], [True, False]]


def test_long_prompts_are_dropped_and_counted_never_cut():
    made = prompts([Record("a", "1 2 3"), Record("b", "1 2 3 4"), Record("c", "9 60")])
    assert made.prompt_ids == ((1, 2, 3),)
    assert dict(made.dropped) == {"longer than 3 tokens": 1, "a token outside the shared vocabulary": 1}


def test_empty_prompts_and_references_outside_the_vocabulary_are_dropped():
    made = prompts([Record("a", ""), Record("b", "1", references=("60",)), Record("c", "2")])
    assert made.prompt_ids == ((2,),) and sum(made.dropped.values()) == 2


def test_validation_prompts_are_never_trained_on():
    made = prompts([Record("a", "1"), Record("b", "2")], exclude=[Record("other", "2")])
    assert made.prompt_ids == ((1,),) and made.dropped["also a validation prompt"] == 1


def test_nothing_left_is_an_error_that_says_why():
    with pytest.raises(
        DataError, match=r"none of 1 prompts is left \(1 longer than 3 tokens\); change data.max_prompt_tokens"
    ):
        prompts([Record("a", "1 2 3 4")])


@pytest.mark.parametrize(
    ("record", "options", "what"),
    [
        (Record("a", "1"), {"answered": True}, "the file: its rows need an answer (key output, or a last turn of"),
        (Record("a", "1"), {"exclude": [Record("b", "1")]}, "data.val_size or data.val_file"),
        (Record("a", ""), {}, "data.template"),
        (Record("a", "60"), {}, "the file or the pair: its tokens are beyond"),
    ],
)
def test_what_to_change_is_what_the_reason_is_about(record, options, what):
    with pytest.raises(DataError) as caught:
        prompts([record], **options)
    assert f"; change {what}" in str(caught.value) and "max_prompt_tokens" not in str(caught.value)


def test_references_end_with_eos_and_are_cut_at_the_limit():
    made = prompts([Record("a", "1", references=("4 5",)), Record("b", "2", references=("4 5 6 7",))])
    assert made.reference_ids == ((4, 5, 0), (4, 5, 6)) and made.has_references and made.references_cut == 1
    batch = made.batch([1, 0], index=4, with_references=True)
    assert batch.records.tolist() == [1, 0] and batch.index == 4
    assert batch.reference_ids_BR.tolist() == [[4, 5, 6], [4, 5, 0]] and batch.reference_mask_BR.all()


def test_an_answer_that_was_cut_off_has_no_end_to_learn():
    rows = [Record("a", "1", references=("4 5",), truncated=True), Record("b", "2", references=("4 5",))]
    made = prompts(rows)
    assert made.reference_ids == ((4, 5), (4, 5, 0)) and made.references_cut == 1


def test_prompt_and_reference_together_have_a_limit_of_their_own():
    rows = [Record("a", "1", references=("4 5 6",)), Record("b", "2 3 4", references=("4 5 6",))]
    made = prompts(rows, max_response_tokens=4, max_tokens=5)
    assert made.reference_ids == ((4, 5, 6, 0), (4, 5)) and made.references_cut == 1


def test_where_answers_are_learnt_prompts_without_one_are_dropped_and_counted():
    rows = [Record("a", "1", references=("4",)), Record("b", "2")]
    assert prompts(rows).prompt_ids == ((1,), (2,))
    made = prompts(rows, answered=True)
    assert made.prompt_ids == ((1,),) and dict(made.dropped) == {"without a response (key output)": 1}


def test_sources_say_all_that_is_wrong():
    with pytest.raises(ConfigError) as caught:
        Sources(val_file=None, max_prompt_tokens=0, block_size=1, system="x", template="paper")
    for text in ("max_prompt_tokens=0", "block_size=1", "val_size=null with val_file=null", "only the chat template"):
        assert text in str(caught.value)


def test_a_batch_keeps_each_prompt_whole_where_pad_is_eos_and_eos_is_inside():
    made = prompts([Record("a", "0 7 0"), Record("b", "0"), Record("c", "5 0")])
    batch = made.batch([2, 0, 1])
    assert batch.ids_BP.tolist() == [[0, 5, 0], [0, 7, 0], [0, 0, 0]]
    assert batch.mask_BP.int().tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert batch.reference_ids_BR is None and batch.reference_mask_BR is None and len(batch) == 3


def test_rows_of_no_tokens_and_no_rows_can_be_padded():
    ids, mask = pad([[], [3]], 9, left=False)
    assert ids.tolist() == [[9], [3]] and mask.tolist() == [[False], [True]]
    assert pad([], 9, left=True)[0].shape == (0, 0)


def test_every_prompt_comes_back_out_of_its_batch():
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(50)) for _ in range(draw.randint(1, 9))) for _ in range(23)]
    made = prompts([Record(str(n), text) for n, text in enumerate(texts)], max_prompt_tokens=9)
    batch = made.batch(range(23))
    found = [ids[mask].tolist() for ids, mask in zip(batch.ids_BP, batch.mask_BP, strict=True)]
    assert found == [list(map(int, text.split())) for text in texts] and batch.records.tolist() == list(range(23))


def test_held_out_means_the_same_history_instruction_and_input():
    records = [Record("a", "1"), Record("b", "1", "x"), Record("c", "1", history=(("system", "s"),)), Record("d", "2")]
    for held_out, left in (("a", "bcd"), ("b", "acd"), ("c", "abd")):
        exclude = [record for record in records if record.id == held_out]
        assert "".join(record.id for record in prompts(records, exclude=exclude).records) == left


def test_an_input_below_its_instruction_is_the_same_prompt():
    made = prompts([Record("a", "1", "2"), Record("b", "3")], exclude=[Record("c", "1\n\n2 ")])
    assert made.prompt_ids == ((3,),)


def test_white_space_at_the_ends_makes_no_other_prompt():
    assert prompts([Record("a", "1 \n"), Record("b", "2")], exclude=[Record("c", "1", " ")]).prompt_ids == ((2,),)


def test_all_reasons_are_logged_with_their_counts(caplog):
    records = [Record("a", "1"), Record("b", "1 2 3 4"), Record("c", "1 2 3 4 5"), Record("d", "9")]
    with caplog.at_level(logging.INFO, logger="minillm.data.prompts"):
        prompts(records, exclude=[records[3]], name="training prompts")
    assert "training prompts: 1 kept of 4 (dropped: 2 longer than 3 tokens, 1 also a validation prompt)" in caplog.text


def test_the_first_reference_is_taken_and_its_absence_is_seen():
    made = prompts([Record("a", "1", references=("4", "5")), Record("b", "2")])
    assert made.reference_ids == ((4, 0), ()) and not made.has_references


def test_everything_held_out_is_an_error_with_the_name_of_the_set():
    with pytest.raises(DataError, match=r"training prompts: none of 2 prompts is left \(2 also a validation prompt\)"):
        prompts([Record("a", "1"), Record("b", "1")], exclude=[Record("c", "1")], name="training prompts")


def test_prompts_are_the_same_in_batches_of_any_size(monkeypatch):
    records = [Record(str(n), str(n % 60), references=(f"{n % 7} 4",)) for n in range(130)]
    made = prompts(records, exclude=[Record("c", "3")])
    for size in (1, 7):
        monkeypatch.setattr("minillm.data.prompts._BATCH", size)
        other = prompts(records, exclude=[Record("c", "3")])
        assert other.digest() == made.digest() and other.dropped == made.dropped and other.records == made.records
