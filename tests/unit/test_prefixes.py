"""What both models say about sampled answers, against full passes and the sum over all answers."""

import itertools
import math
from collections import Counter

import pytest
import torch

from minillm.common.types import Rollout
from minillm.data import PromptSet, Record
from minillm.evaluation.answers import Sample, divergence, prefix_kl, sample_answers, sample_mask
from minillm.evaluation.metrics import exposure_curve
from minillm.losses import reverse_kl, token_logprobs
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import rollout_divergence
from tests.helpers import PROMPTS, ROAD_NAMES, ROADS, own_logits, prompt_batch
from tests.tiny import FAMILIES, make_model, make_pair

OPTIONS = dict(seed=3, max_new_tokens=6, batch_size=16, stop_ids=(0, 4, 9, 20, 25))


def prompt_set(prompts=PROMPTS):
    records = tuple(Record(str(row), "x") for row in range(len(prompts)))
    return PromptSet(records, tuple(map(tuple, prompts)), ((),) * len(prompts), 0, Counter())


def rollout_of(prompts, samples):
    batch = prompt_batch([prompts[sample.prompt] for sample in samples])
    mask = sample_mask(samples)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([token for sample in samples for token in sample.tokens])
    return Rollout(batch.ids_BP, batch.mask_BP, ids, mask)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_figures_are_those_of_the_models_own_passes(road, family, max_tokens):
    pair = make_pair(family)
    samples = sample_answers(LanguageModel(pair.student), prompt_set(), n_samples=2, **OPTIONS)[::-1]
    rollout = rollout_of(PROMPTS, samples)
    found = rollout_divergence(LanguageModel(pair.student), pair.teacher, rollout, road, max_tokens=max_tokens)
    mask, ours, theirs = (
        rollout.response_mask_BR,
        own_logits(pair.student, rollout),
        own_logits(pair.teacher.network, rollout),
    )
    ids = rollout.response_ids_BR[mask]
    for got, expected in (
        (found.student_logprobs_BR, token_logprobs(ours, ids)),
        (found.teacher_logprobs_BR, token_logprobs(theirs, ids)),
        (found.reverse_kl_BR, reverse_kl(ours, theirs)),
        (found.forward_kl_BR, reverse_kl(theirs, ours)),
    ):
        torch.testing.assert_close(got[mask], expected, rtol=0, atol=1e-9)
        assert (got[~mask] == 0).all()


def test_samples_depend_on_seed_prompt_and_number_only():
    model = LanguageModel(make_model(seed=1))
    all_of = sample_answers(model, prompt_set(), n_samples=4, **OPTIONS)
    assert [sample.prompt for sample in all_of] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({sample.tokens for sample in all_of}) > 6
    assert sample_answers(model, prompt_set(), n_samples=4, **OPTIONS | {"batch_size": 3}) == all_of
    fewer = sample_answers(model, prompt_set(), n_samples=2, **OPTIONS)
    assert fewer == [each for row in range(3) for each in all_of[4 * row : 4 * row + 2]]
    assert sample_answers(model, prompt_set(), n_samples=4, **OPTIONS | {"seed": 4}) != all_of
    for sample in all_of:
        ended = [token in OPTIONS["stop_ids"] for token in sample.tokens]
        assert not any(ended[:-1]) and (ended[-1] or len(sample.tokens) == 6)


def test_equal_models_draw_equal_samples():
    models = [LanguageModel(make_model(seed=1)) for _ in range(2)]
    assert sample_answers(models[0], prompt_set(), **OPTIONS) == sample_answers(models[1], prompt_set(), **OPTIONS)


def test_no_samples_have_no_values():
    pair = make_pair()
    found = divergence(LanguageModel(pair.student), pair.teacher, prompt_set(), [])
    assert found.forward_kl_BR.shape == sample_mask([]).shape == (0, 0)


V, T, END = 4, 3, 0
PREFIXES = [prefix for n in range(T) for prefix in itertools.product(range(1, V), repeat=n)]


@pytest.mark.slow
def test_exposure_of_models_is_that_of_all_answers():
    """Enumerated over a vocabulary of 4 and 3 tokens; sampled 4,000 times, within five standard errors."""
    student, teacher = (LanguageModel(make_model(vocabulary=V, seed=seed)) for seed in (6, 5))
    prompts, n_samples = prompt_set([[1, 2], [3]]), 2000
    exact = {"student": [0.0] * T, "teacher": [0.0] * T}
    for prompt in prompts.prompt_ids:
        logq, logp = (
            {
                prefix: model.network(input_ids=torch.tensor([[*prompt, *prefix]])).logits[0, -1].log_softmax(-1)
                for prefix in PREFIXES
            }
            for model in (student, teacher)
        )
        for side, own in (("student", logq), ("teacher", logp)):
            for t in range(T):
                reach = {
                    prefix: math.exp(sum(own[prefix[:at]][token].item() for at, token in enumerate(prefix)))
                    for prefix in PREFIXES
                    if len(prefix) == t
                }
                kls = {prefix: (logp[prefix].exp() * (logp[prefix] - logq[prefix])).sum().item() for prefix in reach}
                mean = sum(reach[prefix] * kls[prefix] for prefix in reach) / sum(reach.values())
                exact[side][t] += mean / len(prompts)

    options = dict(seed=0, n_samples=n_samples, max_new_tokens=T, batch_size=500, stop_ids=(END,))
    sides = [
        prefix_kl(student, teacher, prompts, sample_answers(model, prompts, **options)) for model in (student, teacher)
    ]
    curve = exposure_curve(*sides)
    for side, found, means in zip(sides, (curve.student, curve.teacher), exact.values(), strict=True):
        for t in range(T):
            error = side.kl_BR[:, t][side.mask_BR[:, t]].std().item() / math.sqrt(found.alive[t])
            assert found.mean[t] == pytest.approx(means[t], abs=5 * error + 1e-9)
    assert curve.first_token == pytest.approx(exact["student"][0], abs=1e-9)
    own, given = (sum(exact[side]) for side in ("student", "teacher"))
    assert abs(own - given) > 0.2 * given  # or the comparison would say nothing
    assert curve.excess[2] == pytest.approx(100 * (own - given) / given, abs=5)
    assert curve.excess[0] == pytest.approx(0, abs=1e-6)


def test_answers_of_a_given_text_are_scored_too():
    pair = make_pair()
    samples = [Sample(2, (5, 6, 0)), Sample(0, (0,))]
    found = divergence(LanguageModel(pair.student), pair.teacher, prompt_set(), samples)
    rollout = rollout_of(PROMPTS, samples)
    direct = rollout_divergence(LanguageModel(pair.student), pair.teacher, rollout, LinearLoss(), max_tokens=100)
    torch.testing.assert_close(found.forward_kl_BR, direct.forward_kl_BR, rtol=0, atol=1e-9)
    assert (found.forward_kl_BR[1, 1:] == 0).all()
