"""What student and teacher share of their vocabularies, and what is refused."""

import pytest
import torch

from minillm.common.errors import ModelError
from minillm.models import (
    LanguageModel,
    pair_of,
)
from minillm.models.vocabulary import compare_vocabularies
from tests.tiny import make_model, make_tokenizer


def test_padded_vocabularies_are_cut_to_the_shared_rows():
    tokenizer = make_tokenizer()
    found = compare_vocabularies(tokenizer, make_tokenizer(), 40, 36)
    assert found.shared == 36 and (found.student.rows, found.teacher.rows, found.beyond) == (40, 36, 0)
    pair = pair_of(make_model(vocabulary=40), make_model(vocabulary=36), tokenizer, make_tokenizer())
    assert LanguageModel(pair.student, pair.n_vocab).head()(torch.zeros(2, 32).double()).shape == (2, 36)
    # Rows beyond the shared ones must not take part in the softmax.
    model = LanguageModel(pair.student, pair.n_vocab)
    hidden = torch.randn(3, 32).double()
    full = hidden @ pair.student.get_output_embeddings().weight.T
    torch.testing.assert_close(model.head()(hidden), full[:, :36])
    torch.testing.assert_close(model.head().columns(hidden), full[:, :36].T)


def test_different_tokenizers_are_refused_with_both_sizes():
    with pytest.raises(
        ModelError, match=r"1 of the first 32 tokens differ.*student: 32 tokens, 32 rows; teacher: 32 tokens"
    ):
        compare_vocabularies(make_tokenizer(("yes",)), make_tokenizer(("no",)), 32, 32)


def test_a_token_added_behind_the_shared_rows_is_fine():
    found = compare_vocabularies(make_tokenizer(), make_tokenizer(("added",)), 31, 32)
    assert (found.shared, found.beyond, found.teacher.tokens) == (31, 1, found.student.tokens + 1)


def test_different_ends_are_refused():
    other = make_tokenizer()
    other.eos_token = "cat"
    with pytest.raises(ModelError, match=r"end an answer differently: '</s>' \(id 0\) and 'cat'"):
        compare_vocabularies(make_tokenizer(), other, 31, 31)


def test_all_that_is_wrong_with_a_pair_comes_at_once():
    other = make_tokenizer(("no",))
    other.eos_token = "no"
    with pytest.raises(ModelError) as caught:
        compare_vocabularies(make_tokenizer(("yes",)), other, 32, 32)
    problems = str(caught.value).splitlines()
    assert len(problems) == 2
    assert "1 of the first 32 tokens differ" in problems[0] and "end an answer differently" in problems[1]


def test_an_end_beyond_the_shared_rows_is_refused():
    tokenizers = [make_tokenizer(("<end>",)) for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.eos_token = "<end>"
    with pytest.raises(ModelError, match=r"no usable eos token: id 31 with 31 rows"):
        compare_vocabularies(*tokenizers, 40, 31)
