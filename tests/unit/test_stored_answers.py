"""Answers of the data among the student's: which, with which weights, and what they teach."""

from dataclasses import replace

import pytest
import torch

from minillm.common.errors import ConfigError
from minillm.common.types import Rollout, TrainBatch
from minillm.data.prompts import pad
from minillm.objectives import DistiLLM2, MiniLLM, ReverseKL
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import prepared
from minillm.rollout.stored import Stored
from minillm.testing import check_objective
from tests.conf.test_compose import settings
from tests.helpers import PROMPTS, own_logits, prompt_batch
from tests.tiny import make_pair
from tests.unit import test_on_policy

REFERENCES = [[5, 6, 7, 8, 9, 10, 11, 0], [12, 0], [13, 14, 15, 0]]


def batch_of(index=0):
    ids, mask = pad(REFERENCES * 2, 0, left=False)
    prompts = replace(prompt_batch(PROMPTS * 2), index=index, reference_ids_BR=ids, reference_mask_BR=mask)
    return TrainBatch(replace(prompts, records=torch.arange(3).repeat(2)))


def module_of(objective=None, stored=None, alpha=0.3):
    module = test_on_policy.module_of(make_pair(), objective, alpha=alpha)
    module.stored = stored or Stored(0.5)
    return module


@pytest.fixture(autouse=True)
def road(monkeypatch):
    monkeypatch.setattr(test_on_policy, "ROAD", LinearLoss(None))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_given_answers_stand_among_the_drawn_ones(alpha):
    """The drawn rows are those of a run without given answers; all are scored by both models."""
    module = module_of(alpha=alpha)
    mixed, drawn = (each.rollout(batch_of()) for each in (module, module_of(stored=Stored(1.0), alpha=alpha)))
    assert drawn.given_B is None and mixed.given_B.sum() == 3
    for row, given in enumerate(mixed.given_B.tolist()):
        from_data = (REFERENCES[row % 3], tokens(mixed, row, "student_logprobs_BR"), row % 3)
        ids, logprobs, record = from_data if given else drawn_as(drawn, row)
        # Fewer rows are decoded: on some CPUs another kernel adds in another order.
        assert drawn_as(mixed, row) == (ids, pytest.approx(logprobs, rel=0, abs=1e-12), record)
    assert_scored(module, mixed)


def tokens(rollout, row, name):
    return getattr(rollout, name)[row][rollout.response_mask_BR[row]].tolist()


def drawn_as(rollout, row):
    """Ids, log-probs of what drew them, and the prompt's record."""
    names = ("response_ids_BR", "behaviour_logprobs_BR")
    return *(tokens(rollout, row, name) for name in names), int(rollout.records_B[row])


def assert_scored(module, rollout):
    """Both models' log-probs are those of a forward pass now."""
    mask_BR, models = rollout.response_mask_BR, (module.student, module.pair.teacher.network)
    for network, logprobs_BR in zip(models, (rollout.student_logprobs_BR, rollout.teacher_logprobs_BR), strict=True):
        wanted_NV = own_logits(network, rollout)[:, :31].log_softmax(-1)
        wanted_N = wanted_NV.gather(-1, rollout.response_ids_BR[mask_BR].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(logprobs_BR[mask_BR], wanted_N, rtol=0, atol=1e-9)


def test_the_share_and_the_choice_are_a_function_of_seed_and_round():
    def rows(seed, index, share=0.5, n=6):
        stored = Stored(share, seed=seed)
        stored.choose(batch_of(index).prompts)
        return sorted(stored.rows)

    assert rows(0, 3) == rows(0, 3) and len({tuple(rows(0, index)) for index in range(20)}) > 10
    assert {len(rows(1, index)) for index in range(20)} == {3}
    counts = [len(rows(0, index, share=0.75)) for index in range(400)]
    assert set(counts) == {1, 2} and sum(counts) / 400 == pytest.approx(1.5, abs=0.1)
    assert rows(0, 0, share=0.0) == list(range(6)) and rows(0, 0, share=1.0) == []


@pytest.mark.parametrize("ranks_share", [0.5, 0.0, 0.2])
def test_three_ranks_have_the_rollout_of_one(ranks, ranks_share):
    """Some rank has no prompt to answer, or none with a given answer."""
    alone = module_of(stored=Stored(ranks_share)).rollout(batch_of())
    modules = [module_of(stored=Stored(ranks_share)) for _ in range(3)]  # weights are drawn by one thread

    def work(group):
        modules[group.rank].group = group
        return modules[group.rank].rollout(batch_of())

    for made in ranks(work):
        for name in ("response_mask_BR", "given_B", "student_logprobs_BR", "teacher_logprobs_BR", "prompt_mask_BP"):
            torch.testing.assert_close(getattr(made, name), getattr(alone, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "objective",
    [
        MiniLLM(), MiniLLM(importance="exact", length_norm=False), MiniLLM(whitening="all"),
        MiniLLM(whitening="masked", skip_current=False), ReverseKL(long_part=True),
    ],
)  # fmt: skip
def test_a_given_answer_has_weight_one_and_no_advantage(objective):
    module = module_of(objective)
    rollout = module.rollout(batch_of())
    made, given = prepared(rollout, objective).constants, rollout.given_B
    assert (made["advantages"][given] == 0).all() and (made["advantages"][~given] != 0).any()
    for name in made:
        if "weights" in name:
            assert (made[name][given] == 1).all()
    if getattr(objective, "whitening", None) == "masked":  # the given answers move neither mean nor variance
        alone = objective.prepare(replace(rollout.rows(~given), given_B=None))["advantages"]
        torch.testing.assert_close(made["advantages"][~given], alone)


def test_a_replayed_answer_is_as_it_was_drawn_but_for_the_scores_of_now():
    module = module_of(stored=Stored(replay=0.5, replay_size=2))
    first = module.rollout(batch_of(0))
    assert module.stored.rows == [] and first.given_B is None
    module.stored.keep(first)
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.mul_(1.01)
    second = module.rollout(batch_of(1))
    assert len(module.stored.rows) == 3
    for row in module.stored.rows:
        assert drawn_as(second, row) in [drawn_as(first, at) for at in range(6)]
        prompt = second.prompt_ids_BP[row][second.prompt_mask_BP[row]].tolist()
        assert prompt == PROMPTS[second.records_B[row]]
    assert_scored(module, second)
    module.stored.keep(second)
    assert [len(each) for each in module.stored.earlier] == [6, 3]  # what was drawn
    again = Stored(replay=0.5)
    again.earlier = [Rollout(**vars(each)) for each in module.stored.earlier]
    one, two = again.choose(batch_of(2).prompts), module.stored.choose(batch_of(2).prompts)
    assert torch.equal(one.behaviour_logprobs_BR, two.behaviour_logprobs_BR) and again.rows == module.stored.rows


def test_distillm2_is_the_definition():
    check_objective(DistiLLM2())
    check_objective(DistiLLM2(balance=0.4, alpha=0.3, long_part=True))
    module = module_of(DistiLLM2(balance=0.6, alpha=0.2), alpha=0.0)
    rollout = module.rollout(batch_of())
    loss = module._policy_gradients(prepared(rollout, module.objective))["train/loss"]
    mine = {name: each.grad.clone() for name, each in module.student.named_parameters()}
    module.student.zero_grad()
    q = own_logits(module.student, rollout)[:, :31].softmax(-1)
    p = own_logits(module.pair.teacher.network, rollout)[:, :31].softmax(-1).detach()
    given_N = rollout.given_B.unsqueeze(-1).expand_as(rollout.response_mask_BR)[rollout.response_mask_BR]
    forward, reverse = 0.2 * p + 0.8 * q, 0.8 * p + 0.2 * q
    wanted_N = torch.where(given_N, 1.4 * (p * (p / forward).log()).sum(-1), 0.6 * (q * (q / reverse).log()).sum(-1))
    wanted_N.mean().backward()
    torch.testing.assert_close(loss, wanted_N.mean().detach(), rtol=0, atol=1e-9)
    for name, each in module.student.named_parameters():
        torch.testing.assert_close(mine[name], each.grad, rtol=0, atol=1e-9)


def test_the_settings():
    made = settings("objective=distillm2")
    assert made.objective == DistiLLM2() and made.data.on_policy == 0.5 and not made.regulariser.on
    for given, text in (
        (["data.on_policy=1.5"], r"data.on_policy=1.5: wanted a share"),
        (["objective=sampled", "data.on_policy=0.5"], r"objective Sampled is a policy gradient alone"),
        (["objective.single_step=false", "objective.skip_current=false", "data.on_policy=0.5"], "MiniLLM is a policy"),
        (["regime=supervised", "objective=sft", "regulariser=none", "data.on_policy=0.5"], "wanted 1 and 0"),
        (
            ["data.on_policy=0.5", "data.replay=0.5"],
            "data.replay=0.5: wanted 0, or a share",
        ),
    ):
        with pytest.raises(ConfigError, match=text):
            settings(*given)
