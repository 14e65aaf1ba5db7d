"""Label words scored against the network's own pass over prompt and word, one row at a time."""

import pytest
import torch

from minillm.common.errors import ConfigError, DataError
from minillm.data import Record, build_prompts
from minillm.evaluation.metrics import calibration_figures, label_probabilities
from minillm.evaluation.zero_shot import choice_labels, label_logprobs, word_tokens
from minillm.models import LanguageModel
from tests.tiny import FAMILIES, make_model, make_tokenizer

TEXTS = ["the cat is big", "why", "a red fish in the river </s> is it small", "name two"]
WORDS = {
    "one token each": ("red", "blue"),
    "several tokens": ("red cat", "blue dog", "big"),
    "only the last differs": ("red cat", "red dog"),
}


def prompts_of(texts=TEXTS, words=("red", "blue"), tokenizer=None):
    tokenizer = tokenizer or make_tokenizer()
    records = [Record(str(row), text, references=(words[row % len(words)],)) for row, text in enumerate(texts)]
    return build_prompts(
        records,
        lambda records: [tokenizer(record.instruction)["input_ids"] for record in records],
        tokenizer,
        pad_id=0,
        n_vocab=31,
        max_prompt_tokens=50,
        max_response_tokens=5,
    )


def by_rows(network, prompts, words, n_vocab=31):
    sums = []
    for prompt in prompts.prompt_ids:
        for word in words:
            logits = network(input_ids=torch.tensor([[*prompt, *word]])).logits[0, :, :n_vocab].log_softmax(-1)
            sums.append(sum(logits[len(prompt) - 1 + at, token].item() for at, token in enumerate(word)))
    return torch.tensor(sums, dtype=torch.float64).view(len(prompts), len(words))


@pytest.mark.some(15)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("max_tokens", [1, 25, 4096])
def test_sums_are_those_of_the_models_own_pass(family, words, max_tokens):
    network, prompts = make_model(family), prompts_of()
    tokens = word_tokens(words, make_tokenizer(), 31)
    got = label_logprobs(LanguageModel(network), prompts, tokens, max_tokens=max_tokens)
    torch.testing.assert_close(got, by_rows(network, prompts, tokens), rtol=0, atol=1e-9)


def test_the_vocabulary_is_cut_before_the_softmax():
    network, prompts = make_model(vocabulary=40), prompts_of()
    tokens = word_tokens(("red", "blue"), make_tokenizer(), 31)
    got = label_logprobs(LanguageModel(network, 31), prompts, tokens)
    torch.testing.assert_close(got, by_rows(network, prompts, tokens), rtol=0, atol=1e-9)


def test_words_that_differ_in_their_last_token_share_one_pass(monkeypatch):
    network, calls = make_model(), []
    model = LanguageModel(network)
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids: calls.append(ids.shape) or hidden(ids))
    for words, passes in (("red", "blue", "big"), 1), (("red cat", "red dog"), 1), (("red cat", "blue dog", "big"), 3):
        calls.clear()
        label_logprobs(model, prompts_of(), word_tokens(words, make_tokenizer(), 31))
        assert len(calls) == passes


def test_from_records_to_figures():
    network, prompts = make_model(), prompts_of()
    labels = choice_labels(prompts, ("red", "blue"))
    assert labels.tolist() == [0, 1, 0, 1]
    tokens = word_tokens(("red", "blue"), make_tokenizer(), 31)
    scores = label_logprobs(LanguageModel(network), prompts, tokens)
    found = calibration_figures(label_probabilities(scores), labels, resamples=20)
    right = [(row[1] > row[0]) == label for row, label in zip(scores.tolist(), labels.tolist(), strict=True)]
    assert found.n == 4 and found.accuracy == sum(right) / 4


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("red", "purple"), "'purple' is unknown to the tokenizer .<unk>."),
        (("red", "red purple"), "'red purple' is unknown"),
        (("red", "  "), "'  ' has no tokens"),
        (("red", "two"), "'two' is outside the 30 shared tokens"),
        (("red", "red cat"), "'red cat' begin with those of 'red'"),
        (("red  cat", "red cat"), "'red cat' begin with those of 'red  cat'"),
    ],
)
def test_a_word_that_cannot_be_scored_is_refused(words, text):
    with pytest.raises(ConfigError, match=text):
        word_tokens(words, make_tokenizer(), 30)


def test_all_wrong_words_are_named_at_once():
    with pytest.raises(ConfigError, match="2 problems") as error:
        word_tokens(("purple", "red", "two"), make_tokenizer(), 30)
    assert len(error.value.problems) == 2


def test_a_prompt_whose_reference_is_no_label_word_is_named():
    with pytest.raises(DataError, match=r"1: its reference \('blue',\) is none of the words \['red', 'big'\]"):
        choice_labels(prompts_of(), ("red", "big"))
