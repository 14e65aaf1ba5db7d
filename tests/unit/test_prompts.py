"""Padding with explicit masks; prompts dropped and counted, never cut."""

import pytest

from minillm.data import Record, Sources, build_prompts
from minillm.data.prompts import pad
from minillm.errors import ConfigError, DataError


def prompts(records, **options):
    def encode(record):
        return list(map(int, record.instruction.split()))

    class Words:
        eos_token_id = 0

        def __call__(self, text, add_special_tokens):
            return {"input_ids": list(map(int, text.split()))}

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


def test_validation_prompts_are_never_trained_on():
    made = prompts([Record("a", "1"), Record("b", "2")], exclude=[Record("other", "2")])
    assert made.prompt_ids == ((1,),) and made.dropped["also a validation prompt"] == 1


def test_nothing_left_is_an_error_that_says_why():
    with pytest.raises(DataError, match=r"none of 1 prompts is left \(1 longer than 3 tokens\); raise data.max_prompt_tokens"):
        prompts([Record("a", "1 2 3 4")])


def test_references_end_with_eos_and_are_cut_at_the_limit():
    made = prompts([Record("a", "1", references=("4 5",)), Record("b", "2", references=("4 5 6 7",))])
    assert made.reference_ids == ((4, 5, 0), (4, 5, 6)) and made.has_references
    batch = made.batch([1, 0], index=4, with_references=True)
    assert batch.records.tolist() == [1, 0] and batch.index == 4
    assert batch.reference_ids_BR.tolist() == [[4, 5, 6], [4, 5, 0]] and batch.reference_mask_BR.all()


def test_batches_cover_every_prompt_once_shortest_first():
    made = prompts([Record(str(n), " ".join("1" * n)) for n in (3, 1, 2)])
    assert [batch.records.tolist() for batch in made.batches(2)] == [[1, 2], [0]]


def test_sources_say_all_that_is_wrong():
    with pytest.raises(ConfigError) as caught:
        Sources(val_file=None, max_prompt_tokens=0, block_size=1, system="x", template="paper")
    for text in ("max_prompt_tokens=0", "block_size=1", "val_size=null with val_file=null", "only the chat template"):
        assert text in str(caught.value)
