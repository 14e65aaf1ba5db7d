"""What models say about given answers, whatever goes through them at a time."""

from dataclasses import replace

import pytest
import torch

from minillm.losses import reverse_kl, token_logprobs
from minillm.models import LanguageModel
from minillm.objectives import ForwardKL, ReverseKL
from minillm.rollout import decode, rollout_divergence, with_costs, with_teacher
from minillm.rollout.micro_batch import micro_batches
from tests.helpers import PROMPTS, ROAD_NAMES, ROADS, own_logits, prompt_batch
from tests.tiny import FAMILIES, make_pair

OPTIONS = dict(stop_ids=(0, 4, 9, 20, 25), pad_id=0, max_new_tokens=12, batch_size=8)


def student_rollout(pair, n=9):
    rows = (PROMPTS * n)[:n]
    return decode(LanguageModel(pair.student), None, prompt_batch(rows), seeds=list(range(n)), **OPTIONS)


@pytest.mark.some(12)
@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_scoring_equals_the_teachers_own_pass(road, family, max_tokens):
    pair = make_pair(family)
    rollout = student_rollout(pair)
    mask, ids = rollout.response_mask_BR, rollout.response_ids_BR
    scored = with_teacher(rollout, pair.teacher, road, max_tokens=max_tokens)
    own = own_logits(pair.teacher.network, rollout)
    torch.testing.assert_close(scored.teacher_logprobs_BR[mask], token_logprobs(own, ids[mask]), rtol=0, atol=1e-9)
    torch.testing.assert_close(pair.teacher.head()(scored.teacher_hidden_BRH[mask]), own, rtol=0, atol=1e-9)
    lean = with_teacher(rollout, pair.teacher, road, max_tokens=max_tokens, keep_hidden=False)
    assert lean.teacher_hidden_BRH is None
    torch.testing.assert_close(lean.teacher_logprobs_BR, scored.teacher_logprobs_BR, rtol=0, atol=1e-12)
    kl_BR = rollout_divergence(
        LanguageModel(pair.student), pair.teacher, rollout, road, max_tokens=max_tokens
    ).reverse_kl_BR
    exact = reverse_kl(own_logits(pair.student, rollout), own)
    torch.testing.assert_close(kl_BR[mask], exact, rtol=0, atol=1e-9)
    assert (kl_BR[~mask] == 0).all()


def test_a_rollout_that_has_the_teachers_word_is_left_as_it_is():
    pair = make_pair()
    rollout = decode(LanguageModel(pair.student), pair.teacher, prompt_batch(), seeds=[1, 2, 3], alpha=0.2, **OPTIONS)
    assert with_teacher(rollout, None, None, max_tokens=1) is rollout


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(1, None), (30, None), (60, 2), (10_000, 3), (10_000, None)])
def test_micro_batches_hold_every_token_once_within_their_budget(max_tokens, max_rows):
    rollout = student_rollout(make_pair(), 11)
    micros = micro_batches(rollout, max_tokens, max_rows)
    assert torch.cat([micro.rows_B for micro in micros]).sort().values.tolist() == list(range(11))
    tokens = torch.cat([micro.token_N for micro in micros]).sort().values
    assert torch.equal(tokens, rollout.response_mask_BR.flatten().nonzero().squeeze(-1))
    widths = [micro.ids_BS.shape[1] for micro in micros]
    assert widths == sorted(widths)
    for micro in micros:
        rows, width = micro.ids_BS.shape
        assert rows == 1 or rows * width <= max_tokens
        assert max_rows is None or rows <= max_rows
        # No column that no row uses.
        prompt, response = (mask[micro.rows_B].sum(-1) for mask in (rollout.prompt_mask_BP, rollout.response_mask_BR))
        assert (prompt + response - 1).max() == width


def test_trimming_frees_what_it_cuts_off():
    pair = make_pair()
    options = OPTIONS | {"max_new_tokens": 500, "stop_ids": tuple(range(31))}
    rollout = decode(LanguageModel(pair.student), pair.teacher, prompt_batch(), seeds=[1, 2, 3], alpha=0.2, **options)
    hidden = rollout.teacher_hidden_BRH
    assert hidden.shape[1] == 1 and hidden.untyped_storage().nbytes() == hidden.numel() * hidden.element_size()


def test_rows_without_an_answer_are_in_no_micro_batch():
    rollout = student_rollout(make_pair(), 3)
    rollout = replace(rollout, response_mask_BR=rollout.response_mask_BR & torch.tensor([[True], [False], [True]]))
    rows = torch.cat([micro.rows_B for micro in micro_batches(rollout, 1)])
    assert sorted(rows.tolist()) == [0, 2]


def test_values_without_a_teacher_need_none():
    pair = make_pair()
    (micro,) = micro_batches(student_rollout(pair), 10_000)
    side = micro.side(LanguageModel(pair.student))
    ids = micro.take(micro.rollout.response_ids_BR)
    for road in ROADS:
        assert road.logprobs(side, ids).shape == ids.shape
        assert road.costs(ReverseKL(), side, side, ids).abs().max() < 1e-12


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize("keep", [True, False])
def test_costs_are_the_divergence_at_each_position(road, keep):
    pair = make_pair()
    student, rollout = LanguageModel(pair.student), student_rollout(pair)
    whole = with_teacher(rollout, pair.teacher, road, max_tokens=30, keep_hidden=keep)
    assert with_costs(whole, student, pair.teacher, ReverseKL(), road, max_tokens=30) is whole  # not needed
    costs_BR = with_costs(whole, student, pair.teacher, ForwardKL(long_part=True), road, max_tokens=30).costs_BR
    divergence = rollout_divergence(student, pair.teacher, rollout, road, max_tokens=30)
    torch.testing.assert_close(costs_BR, divergence.forward_kl_BR, rtol=1e-5, atol=1e-6)
    assert (costs_BR[~rollout.response_mask_BR] == 0).all()
