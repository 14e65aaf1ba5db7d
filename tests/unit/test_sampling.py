"""Decoding against transformers' generate, a full forward pass, and exact probabilities."""

import math

import pytest
import torch

from minillm.losses import token_logprobs
from minillm.models import LanguageModel
from minillm.sampling import Sampler, decode, decode_all, inverse_cdf
from minillm.scoring import response_hidden, response_logits, with_teacher
from tests.conftest import FAMILIES, make_model, make_pair
from tests.helpers import PROMPTS, prompt_batch

OPTIONS = dict(stop_ids=(0,), pad_id=0, max_new_tokens=12)


def generate_greedily(network, batch, stop_ids, n):
    """transformers' own greedy decoding with every default of a generation config neutralised."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False, max_new_tokens=n, eos_token_id=list(stop_ids), pad_token_id=0, repetition_penalty=1.0
    )
    network.generation_config = config
    ids = network.generate(batch.ids_BP, attention_mask=batch.mask_BP.long(), generation_config=config)
    return ids[:, batch.ids_BP.shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_equals_generate_on_padded_prompts(family):
    network, batch = make_model(family), prompt_batch()
    # Stop at what the first row says third, so that rows end at different times.
    free = generate_greedily(network, batch, [10**6], 12)
    stop_ids = (int(free[0, 2]),)
    expected = generate_greedily(network, batch, stop_ids, 12)
    rollout = decode(LanguageModel(network), None, batch, seeds=None, **OPTIONS | {"stop_ids": stop_ids})
    for row in range(len(batch)):
        tokens = rollout.response_ids_BR[row][rollout.response_mask_BR[row]].tolist()
        assert tokens == expected[row, : len(tokens)].tolist()
        assert tokens[-1] in stop_ids or len(tokens) == 12
    assert rollout.response_mask_BR[0].sum() == free[0].tolist().index(stop_ids[0]) + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_captured_logprobs_equal_a_full_forward_pass(family, temperature):
    pair = make_pair(family)
    student, seeds = LanguageModel(pair.student), [1, 2, 3]
    rollout = decode(student, pair.teacher, prompt_batch(), seeds=seeds, alpha=0.3, temperature=temperature, **OPTIONS)
    mask = rollout.response_mask_BR
    for model, captured in ((student, rollout.student_logprobs_BR), (pair.teacher, rollout.teacher_logprobs_BR)):
        logits = response_logits(model, response_hidden(model, rollout), mask) / temperature
        expected = token_logprobs(logits, rollout.response_ids_BR[mask])
        torch.testing.assert_close(captured[mask], expected, rtol=0, atol=1e-9)
    kept = rollout.teacher_hidden_BRH[mask]
    torch.testing.assert_close(kept, response_hidden(pair.teacher, rollout)[mask], rtol=0, atol=1e-9)


def test_scoring_afterwards_gives_what_mixed_decoding_would_have_left():
    pair = make_pair()
    rollout = decode(LanguageModel(pair.student), None, prompt_batch(), seeds=[1, 2, 3], **OPTIONS)
    scored = with_teacher(rollout, pair.teacher, batch_size=2)
    mask = rollout.response_mask_BR
    logits = response_logits(pair.teacher, response_hidden(pair.teacher, rollout), mask)
    expected = token_logprobs(logits, rollout.response_ids_BR[mask])
    torch.testing.assert_close(scored.teacher_logprobs_BR[mask], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_frequencies_of_two_tokens_follow_the_exact_mixture(alpha):
    """Joint frequencies, so that draws that are not independent from token to token are seen too."""
    pair, n, v = make_pair(vocabulary=5), 6000, 5
    student = LanguageModel(pair.student)
    models = (student if alpha < 1 else None, pair.teacher if alpha > 0 else None)
    prompt = prompt_batch([[3, 2, 4]])
    options = OPTIONS | {"max_new_tokens": 2, "stop_ids": (v + 1,)}
    rollout = decode(*models, prompt.rows([0] * n), seeds=list(range(n)), alpha=alpha, **options)
    ids_N2 = rollout.response_ids_BR
    counts = torch.bincount(ids_N2[:, 0] * v + ids_N2[:, 1], minlength=v * v).view(v, v) / n

    def probs(model, ids_BS):
        return model.logits(model.hidden(ids_BS, torch.ones_like(ids_BS, dtype=torch.bool))[:, -1]).softmax(-1)

    def mixed(ids_BS):
        return alpha * probs(pair.teacher, ids_BS) + (1 - alpha) * probs(student, ids_BS)

    longer = torch.cat([prompt.ids_BP.repeat(v, 1), torch.arange(v)[:, None]], dim=1)
    exact = mixed(prompt.ids_BP)[0][:, None] * mixed(longer)
    assert (counts - exact).abs().max() < 4 * math.sqrt(0.25 / n)
    assert (counts - exact.T).abs().max() > 4 * math.sqrt(0.25 / n)


def test_a_row_draws_the_same_answer_in_any_batch():
    pair = make_pair()
    student = LanguageModel(pair.student)
    batch, seeds = prompt_batch(PROMPTS * 2), [11, 12, 13, 14, 15, 16]
    together = decode(student, pair.teacher, batch, seeds=seeds, alpha=0.2, **OPTIONS)
    apart = decode_all(student, pair.teacher, batch, seeds=seeds, alpha=0.2, batch_size=2, **OPTIONS)
    assert len({tuple(row) for row in together.response_ids_BR.tolist()}) > 3
    width = apart.response_ids_BR.shape[1]
    mask = apart.response_mask_BR
    assert torch.equal(together.response_mask_BR[:, :width], mask)
    assert torch.equal(together.response_ids_BR[:, :width][mask], apart.response_ids_BR[mask])


def test_more_padding_changes_no_number():
    pair = make_pair()
    student = LanguageModel(pair.student)
    plain, padded = (
        decode(student, pair.teacher, prompt_batch(extra=extra), seeds=[1, 2, 3], alpha=0.2, **OPTIONS)
        for extra in (0, 9)
    )
    assert torch.equal(plain.response_ids_BR, padded.response_ids_BR)
    torch.testing.assert_close(plain.student_logprobs_BR, padded.student_logprobs_BR, rtol=0, atol=1e-10)


def test_an_eos_inside_a_prompt_stays_visible():
    """pad = eos: a mask rebuilt from `ids != pad` would hide it and change the answer's probabilities."""
    model = LanguageModel(make_model())
    batch = prompt_batch()
    seen = model.logits(model.hidden(batch.ids_BP, batch.mask_BP)[:, -1])
    hidden = model.logits(model.hidden(batch.ids_BP, batch.ids_BP != 0)[:, -1])
    assert (seen[1] - hidden[1]).abs().max() > 1e-3
    alone = prompt_batch([PROMPTS[1]])
    torch.testing.assert_close(
        seen[1], model.logits(model.hidden(alone.ids_BP, alone.mask_BP)[:, -1])[0], atol=1e-9, rtol=0
    )


def test_the_first_stop_counts_and_nothing_after_it():
    network = make_model(vocabulary=9)
    rollout = decode(
        LanguageModel(network),
        None,
        prompt_batch([[3, 4]] * 40),
        seeds=list(range(40)),
        **OPTIONS | {"stop_ids": (0, 5)},
    )
    ended = 0
    for ids, mask in zip(rollout.response_ids_BR.tolist(), rollout.response_mask_BR.tolist(), strict=True):
        n = sum(mask)
        assert mask == [True] * n + [False] * (12 - n)
        assert not {0, 5} & set(ids[: n - 1])
        if n < 12:
            assert ids[n - 1] in (0, 5)
            ended += 1
    assert {0, 5} <= {
        row[sum(m) - 1]
        for row, m in zip(rollout.response_ids_BR.tolist(), rollout.response_mask_BR.tolist(), strict=True)
    }
    assert ended > 5


def test_inverse_cdf_never_draws_a_token_of_probability_zero():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.49999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(probs, uniforms).tolist() == [1, 1, 3, 3]


def test_the_sampler_says_all_that_is_wrong_with_it():
    with pytest.raises(ValueError) as caught:
        Sampler(alpha=1.0, temperature=0.0, max_new_tokens=0, batch_size=0)
    assert all(
        name in str(caught.value) for name in ("alpha=1.0", "temperature=0.0", "max_new_tokens=0", "batch_size=0")
    )
