"""Losses on references, against full passes, alone and shared."""

from collections import Counter

import pytest
import torch

from minillm.data import PromptSet, Record
from minillm.evaluation import reference_loss, reference_losses
from minillm.models import LanguageModel
from tests.conftest import make_model
from tests.helpers import PROMPTS

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
    assert reference_loss(model, prompt_set()) == pytest.approx(sum(expected) / 8, abs=1e-9)
