"""The gradient with a reward, by enumeration of all pairs of answers; what a reward function may do wrong."""

import pytest
import torch
from torch.nn.functional import pad

from minillm.common.errors import ConfigError
from minillm.common.types import Rollout
from minillm.data import Record, rows_at
from minillm.objectives import COSTS, ForwardKL, MiniLLM, ReverseKL
from minillm.rollout import prepared
from minillm.train.reward import Reward
from tests.conf.test_compose import settings
from tests.unit.test_oracle import ANSWERS, ROW, UNBIASED, T, exact_gradient, exact_gradient_of, tables, token_logprobs

PAIRS = [answer for one in ANSWERS for other in ANSWERS for answer in (one, other)]
REWARDS = {answer: (1.0 + len(answer)) * (answer[-1] == 0) - 2.0 * (answer[0] == 1) for answer in ANSWERS}


def rows(table, answer):
    return pad(token_logprobs(table.detach(), answer), (0, T - len(answer)))


def expected_gradient(objective, student, teacher, alpha, gains_B):
    """Over all pairs of answers, their probability under the mixture times the gradient of both losses."""
    logq, logp = (torch.stack([rows(table, answer) for answer in PAIRS]) for table in (student, teacher))
    behaviour_BR = (alpha * logp.exp() + (1 - alpha) * logq.exp()).log()
    mask_BR = torch.tensor([[at < len(answer) for at in range(T)] for answer in PAIRS])
    ids_BR = torch.tensor([[*answer, *[0] * (T - len(answer))] for answer in PAIRS])
    prefix_BR = torch.tensor([[ROW[answer[:at]] if at < len(answer) else 0 for at in range(T)] for answer in PAIRS])
    costs_BR = None
    if COSTS in objective.needs:
        costs_BR = objective.costs(*(table.detach()[prefix_BR].log_softmax(-1) for table in (student, teacher)))
    scores = dict(student_logprobs_BR=logq, teacher_logprobs_BR=logp, behaviour_logprobs_BR=behaviour_BR)
    rollout = Rollout(ids_BR[:, :1], mask_BR[:, :1], ids_BR, mask_BR, **scores, costs_BR=costs_BR, gains_B=gains_B)
    constants = {name: each[mask_BR] for name, each in prepared(rollout, objective).constants.items()}
    q_NV, p_NV = (table[prefix_BR[mask_BR]].log_softmax(-1) for table in (student, teacher))
    values_N = objective.token_loss(q_NV, p_NV, ids_BR[mask_BR], constants).values_N
    chance_B = (behaviour_BR * mask_BR).sum(-1).exp().view(-1, 2).prod(-1).repeat_interleave(2)
    total = (values_N * chance_B.unsqueeze(-1).expand(-1, T)[mask_BR]).sum() / 2  # the mean of both
    return torch.autograd.grad(total, student)[0]


def reward_gradient(student):
    total = sum(token_logprobs(student, answer).sum().exp() * REWARDS[answer] for answer in ANSWERS)
    return torch.autograd.grad(total, student)[0]


@pytest.mark.parametrize(
    ("objective", "alpha"),
    [
        (MiniLLM(**UNBIASED), 0.0), (MiniLLM(**UNBIASED), 0.3), (ReverseKL(long_part=True), 0.0),
        (ForwardKL(long_part=True), 0.0),
    ],
)  # fmt: skip
def test_the_expected_gradient_is_that_of_the_divergence_minus_the_expected_reward(objective, alpha):
    student, teacher = tables()
    rewards_B = torch.tensor([REWARDS[answer] for answer in PAIRS], dtype=torch.float64)
    gains_B = Reward(weight=0.7).gains(rewards_B, 2)
    got = expected_gradient(objective, student, teacher, alpha, gains_B)
    kl = exact_gradient_of(ForwardKL().costs, student, teacher) if isinstance(objective, ForwardKL) else None
    wanted = (exact_gradient(student, teacher) if kl is None else kl) - 0.7 * reward_gradient(student)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)
    # The mean of all answers, the answer itself among them, makes the reward count (n - 1) / n times.
    with_itself = 0.7 * (rewards_B.view(-1, 2) - rewards_B.view(-1, 2).mean(-1, keepdim=True)).flatten()
    halved = expected_gradient(objective, student, teacher, alpha, with_itself)
    torch.testing.assert_close(halved - got, 0.35 * reward_gradient(student), rtol=0, atol=1e-8)


def test_gains_compare_with_the_other_answers_to_the_prompt():
    gains = Reward(weight=2.0).gains(torch.tensor([1.0, 0.0, 0.0, 5.0, 5.0, 5.0]), 3)
    torch.testing.assert_close(gains, torch.tensor([2.0, -1.0, -1.0, 0.0, 0.0, 0.0]))


def test_each_prompt_comes_as_often_as_it_is_answered():
    once = rows_at(3, 0, 12, 5)
    assert rows_at(3, 0, 24, 5, times=2) == [row for row in once for _ in range(2)]
    assert rows_at(3, 4, 8, 5, times=2) == rows_at(3, 0, 24, 5, times=2)[4:12]


def half(record, answer):
    return {"nan": float("nan"), "text": "1"}.get(answer, 0.5)


def test_what_a_function_does_wrong_is_one_message():
    reward, record = Reward(f"{__name__}.half"), Record("a.jsonl:3", "what")
    assert reward.of(record, "so") == 0.5
    assert "half gave nan for the answer 'nan' to a.jsonl:3; wanted a number" in reward.of(record, "nan")
    assert "half raised TypeError: " in reward.of(record, "text")


def test_the_settings():
    ours = [f"reward.function={__name__}.half", "sampler.answers_per_prompt=4"]
    assert settings(*ours, "reward.weight=0.5").reward == Reward(f"{__name__}.half", 0.5)
    assert settings(*ours, "objective=jsd", "objective.long_part=true").objective.long_part
    for given, text in (
        (["reward.function=no.such"], r"reward.function='no.such': wanted the import path of a function"),
        (ours[:1], "with objective MiniLLM, sampler.answers_per_prompt=1: wanted a long part .*, and 2 or more"),
        ([*ours, "objective=sampled"], "with objective Sampled, sampler.answers_per_prompt=4: wanted a long part"),
        (["sampler.answers_per_prompt=3"], "answers_per_prompt=3 does not divide regime.rollouts"),
    ):
        with pytest.raises(ConfigError, match=text):
            settings(*given)
