"""Losses on references, against full passes, alone and shared; the text of answers."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import minillm.evaluation.answers
from minillm.common.types import Rollout
from minillm.data import PromptSet, Record
from minillm.evaluation.answers import answer_prompts, is_uniform, reference_losses
from minillm.models import LanguageModel
from tests.helpers import PROMPTS
from tests.tiny import make_model, make_tokenizer
from tests.tokenizers import byte_level

REFERENCES = [(8, 9, 0), (), (30, 2, 4, 17, 0)]  # the second prompt has none


def prompt_set():
    records = tuple(Record(str(row), "x") for row in range(3))
    return PromptSet(records, tuple(map(tuple, PROMPTS)), tuple(map(tuple, REFERENCES)), 0, Counter())


def test_losses_are_those_of_full_passes_whoever_does_the_work(ranks):
    network = make_model(seed=1)
    expected = []
    for prompt, reference in zip(PROMPTS, REFERENCES, strict=True):
        logp = network(input_ids=torch.tensor([[*prompt, *reference]])).logits[0].log_softmax(-1)
        expected.append(-sum(logp[len(prompt) - 1 + at, token].item() for at, token in enumerate(reference)))
    model = LanguageModel(network)
    shared = ranks(lambda group: reference_losses(model, prompt_set(), group))
    for losses, tokens in (reference_losses(model, prompt_set()), *shared):
        assert losses == pytest.approx(expected, abs=1e-9) and tokens == [3, 0, 5] and losses[1] == 0


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(byte_level(), "\n    x = 1 <|im_end|>\n"), (make_tokenizer((".", "n't", "'s")), "cat . is n't 's")],
)
def test_answers_are_the_text_of_their_tokens(monkeypatch, tokenizer, text):
    """White space at the ends, the text of control tokens, and spaces before punctuation included."""
    tokenizer.clean_up_tokenization_spaces = True
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids_BR = torch.tensor([[*encoded, tokenizer.eos_token_id]])
    prompts = PromptSet((Record("x", "x"),), ((3,),), ((),), 0, Counter())
    mask_BR = torch.ones_like(ids_BR, dtype=torch.bool)
    rollout = Rollout(ids_BR[:, :1], mask_BR[:, :1], ids_BR, mask_BR, torch.zeros(ids_BR.shape))
    monkeypatch.setattr(minillm.evaluation.answers, "decode", lambda *args, **options: rollout)
    sizes = dict(seeds=None, max_new_tokens=9, batch_size=1, stop_ids=(tokenizer.eos_token_id,))
    (answer,) = answer_prompts(LanguageModel(make_model()), prompts, tokenizer, **sizes)
    assert answer.answer == text and not answer.truncated
    last = int(ids_BR[0, -2])  # an end that is no special token
    mask_BR[:, -1] = False
    rollout = replace(rollout, response_mask_BR=mask_BR)
    (answer,) = answer_prompts(LanguageModel(make_model()), prompts, tokenizer, **sizes | {"stop_ids": (last,)})
    assert text.startswith(answer.answer) and answer.answer == text.removesuffix(tokenizer.decode([last])).rstrip(" ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("logits", "uniform"), [("none", True), ("bias", False), ("random", False)])
def test_a_model_that_guesses_is_told_from_random_weights(tokenizer, dtype, logits, uniform):
    network = make_model(dtype=dtype) if logits == "random" else make_model("gpt2", dtype=dtype)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1 / 6 if logits == "random" else 0)  # as transformers initialises them: nearly uniform
        if logits == "bias":
            network.transformer.ln_f.bias.fill_(1)
            network.lm_head.weight[7].fill_(0.05)  # one distribution, whatever the prompt
    sizes = dict(seeds=[1], max_new_tokens=9, batch_size=3, stop_ids=(0,))
    answers = answer_prompts(LanguageModel(network), prompt_set(), tokenizer, **sizes)
    assert is_uniform(answers, 31) is uniform and "logprobs" not in answers[0].row()
