"""A teacher with tokens of its own: how texts are aligned, and what is checked of two tokenizers."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.common.errors import ConfigError, ModelError
from minillm.data import Record, Sources
from minillm.models import pair_of
from minillm.rollout.spans import aligned, token_ends
from tests.tiny import make_model
from tests.tokenizers import byte_level, byte_pairs, slow
from tests.unit.test_spans import STUDENT

ENGLISH = byte_pairs(["ab"], ["<end>"], letters=sorted(pre_tokenizers.ByteLevel.alphabet()))
BYTES = byte_level()


def halves():
    """Bytes, and a token for the first two bytes of most emoji."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first, second = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("😀")[0][0][:2]
    return byte_pairs([first + second], ["<end>"], letters=alphabet)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", [(0, 0)]),
        ("ab", [(0, 0), (2, 1)]),
        ("cab", [(0, 0), (1, 1), (3, 2)]),
        ("a b", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("a  \n", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ("é", [(0, 0), (2, 2)]),  # whole characters only
        ("é😀ab", [(0, 0), (2, 2), (6, 6), (8, 7)]),
    ],
)
def test_units_begin_and_end_together(text, units):
    (found,) = aligned([ids(BYTES, text)], BYTES, ENGLISH)
    assert found.units == units and found.theirs == ids(ENGLISH, text)
    assert len(found.settled) == len(text.encode()) + 1


def test_a_character_cut_by_either_side_is_one_unit():
    split, text = halves(), "a😀b"
    assert len(ids(split, text)) == 5
    (found,) = aligned([ids(split, text)], split, BYTES)
    assert found.units == [(0, 0), (1, 1), (4, 5), (5, 6)]


def test_words_are_settled_once_the_next_one_has_begun():
    (found,) = aligned([ids(BYTES, "ab cd e")], BYTES, ENGLISH)
    # Units: ab, space, c, d, space, e. "ab" is settled for what follows the c, "ab cd" for what follows the e.
    assert found.settled == [0, 0, 0, 0, 1, 1, 1, 4]
    joined = byte_pairs(["bĠ"], ["<end>"], letters=sorted(pre_tokenizers.ByteLevel.alphabet()), by_word=False)
    (found,) = aligned([ids(BYTES, "ab cd e")], BYTES, joined)
    assert found.settled == [0] * 8


def test_answers_that_are_no_text_are_not_aligned():
    emoji, n = ids(BYTES, "a😀"), None
    cut, lone, whole = emoji[:3], emoji[2:], emoji
    assert [each is not n for each in aligned([cut, lone, whole, []], BYTES, ENGLISH)] == [False, False, True, True]
    assert token_ends(BYTES, cut) is None
    # A teacher that does not know a character writes another text.
    few = byte_pairs(["ab"], ["<end>"])
    assert [each is not n for each in aligned([ids(BYTES, "abc"), ids(BYTES, "ab a")], BYTES, few)] == [False, True]


def test_tokens_of_a_sentencepiece_tokenizer_write_texts_too():
    names = ["<unk>", "▁", *"abc", "ab", "▁c", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("a", "b"), ("▁", "c")]
    vocabulary = {name: n for n, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    llama, text = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), "ab cé"
    assert llama.convert_ids_to_tokens(ids(llama, text)) == ["▁", "ab", "▁c", "<0xC3>", "<0xA9>"]
    (found,) = aligned([ids(llama, text)], llama, BYTES)
    assert found.units == [(0, 0), (2, 2), (3, 4), (5, 6)]  # the space in front writes nothing
    (found,) = aligned([ids(BYTES, text)], BYTES, llama)
    assert found.units == [(0, 0), (2, 2), (4, 3), (6, 5)]
    assert aligned([ids(llama, text)[:-1]], llama, BYTES) == [None]


def test_control_tokens_are_text_to_the_other_model():
    start = BYTES.convert_tokens_to_ids("<|im_start|>")
    (found,) = aligned([[*ids(BYTES, "a"), start, *ids(BYTES, "b")]], BYTES, ENGLISH)
    assert ENGLISH.decode(found.theirs) == "a<|im_start|>b" and found.units == [(0, 0), (1, 1), (2, 13), (3, 14)]
    (found,) = aligned([ids(BYTES, "<end>")], BYTES, ENGLISH)  # letters that spell the teacher's end
    assert len(found.theirs) == 5 and ENGLISH.eos_token_id not in found.theirs
    # A teacher without letters for it could read it as a control token only.
    (found,) = aligned([ids(BYTES, "a<end>")], BYTES, byte_pairs([], ["<end>"], letters="ab"))
    assert found is None


def test_separate_tokenizers_are_checked_and_rows_without_a_token_are_cut():
    networks = make_model(vocabulary=40), make_model(vocabulary=270)
    pair = pair_of(*networks, STUDENT, BYTES, separate=True)
    assert pair.n_vocab == len(STUDENT) and pair.teacher.n_vocab == len(BYTES) and pair.pad_id < pair.n_vocab
    assert pair.stop_ids == (STUDENT.eos_token_id,) and pair.teacher_stop_ids == (BYTES.eos_token_id,)
    assert pair.tokens_of(pair.teacher) == (BYTES, (BYTES.eos_token_id,))
    with pytest.raises(ModelError, match=r"the tokenizer of the teacher has no tokenizer.json.*use another"):
        pair_of(*networks, STUDENT, slow(), separate=True)
    with pytest.raises(ModelError, match=r"do not share a vocabulary.*objective=spans with model.tokenizers=separate"):
        pair_of(*networks, STUDENT, BYTES)


def test_the_teacher_sees_its_own_tokens_and_template(tmp_path):
    pair = pair_of(
        make_model(vocabulary=len(ENGLISH)), make_model(vocabulary=len(BYTES)), ENGLISH, BYTES, separate=True
    )
    records = [Record(id="1", instruction="cab", input="", references=("ab",))]
    with pytest.raises(ConfigError, match="this tokenizer has no chat template"):
        Sources(template="chat").evaluation_prompts(records, pair, "prompts", teacher=True)
    seen = Sources(template="paper").evaluation_prompts(records, pair, "prompts", teacher=True)
    assert BYTES.decode(seen.teacher_ids[0]) == ENGLISH.decode(seen.prompt_ids[0])
    assert len(seen.teacher_ids[0]) > len(seen.prompt_ids[0])
    own = replace(pair, tokenizer=BYTES, teacher_tokenizer=ENGLISH)
    with pytest.raises(ConfigError, match="of the teacher's own tokenizer: data.template=chat"):
        Sources(template="chat").evaluation_prompts(records, own, "prompts", teacher=True)
    turns = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    chat = replace(pair, tokenizer=byte_pairs(["ab"], ["<end>"], letters=letters, template=turns))
    seen = Sources(template="chat").evaluation_prompts(records, chat, "prompts", teacher=True)
    assert BYTES.decode(seen.teacher_ids[0]).endswith("<|im_start|>assistant\n") and len(seen.prompt_ids[0]) == 2
