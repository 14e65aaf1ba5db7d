"""The estimator's expectation over all answers of a toy equals the gradient of the exact sequence-level KL.

V tokens (0 ends an answer), at most T of them; student and teacher are tables of logits, one row a prefix.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from minillm.common.types import Rollout
from minillm.objectives import COSTS, ForwardKL, JensenShannon, MiniLLM, ReverseKL, TopK
from minillm.rollout import prepared
from tests.helpers import ROAD_NAMES, ROADS, logits_side

V, T = 3, 4
PREFIXES = [prefix for n in range(T) for prefix in itertools.product(range(1, V), repeat=n)]
ROW = {prefix: row for row, prefix in enumerate(PREFIXES)}
ANSWERS = [(*prefix, last) for prefix in PREFIXES for last in range(V) if last == 0 or len(prefix) == T - 1]
UNBIASED = dict(length_norm=False, clip_on="ratio", importance="exact")


def tables():
    g = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(len(PREFIXES), V, dtype=torch.float64, generator=g) for _ in range(2))
    return student.requires_grad_(), teacher


def token_logprobs(table, answer):
    rows = [ROW[answer[:t]] for t in range(len(answer))]
    return table.log_softmax(-1)[rows, list(answer)]


def exact_gradient(student, teacher):
    kl = 0.0
    for answer in ANSWERS:
        logq, logp = token_logprobs(student, answer).sum(), token_logprobs(teacher, answer).sum()
        kl = kl + logq.exp() * (logq - logp)
    return torch.autograd.grad(kl, student)[0]


def expected_gradient(road, student, teacher, alpha, objective=None, **options):
    """Sum over all answers of p~(answer) times the gradient of the loss on that answer, by the real objective."""
    objective = objective or MiniLLM(**{**UNBIASED, **options})
    total = 0.0
    for answer in ANSWERS:
        n = len(answer)
        logq, logp = (token_logprobs(table.detach(), answer) for table in (student, teacher))
        behaviour = alpha * logp.exp() + (1 - alpha) * logq.exp()
        chance = behaviour.prod()
        rollout = Rollout(
            prompt_ids_BP=torch.zeros(1, 1, dtype=torch.long),
            prompt_mask_BP=torch.ones(1, 1, dtype=torch.bool),
            response_ids_BR=torch.tensor([[*answer, *[0] * (T - n)]]),
            response_mask_BR=torch.arange(T)[None] < n,
            student_logprobs_BR=torch.nn.functional.pad(logq, (0, T - n))[None],
            teacher_logprobs_BR=torch.nn.functional.pad(logp, (0, T - n))[None],
            behaviour_logprobs_BR=torch.nn.functional.pad(behaviour.log(), (0, T - n))[None],
        )
        rows = [ROW[answer[:t]] for t in range(n)]
        if COSTS in objective.needs:
            costs = objective.costs(*(table.detach()[rows].log_softmax(-1) for table in (student, teacher)))
            rollout = replace(rollout, costs_BR=torch.nn.functional.pad(costs, (0, T - n), value=math.nan)[None])
        constants = {name: each[0, :n] for name, each in prepared(rollout, objective).constants.items()}
        sides = logits_side(student[rows]), logits_side(teacher[rows])
        output = road(objective, *sides, torch.tensor(answer), constants, normaliser=1)
        total = total + chance * output.loss
    return torch.autograd.grad(total, student)[0]


def test_all_answers_are_listed():
    student, _ = tables()
    assert sum(token_logprobs(student, answer).sum().exp() for answer in ANSWERS).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5])
def test_the_decomposed_estimator_is_unbiased(road, alpha):
    student, teacher = tables()
    got = expected_gradient(road, student, teacher, alpha)
    torch.testing.assert_close(got, exact_gradient(student, teacher), rtol=0, atol=1e-8)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_policy_gradient_without_single_step_is_unbiased(road, alpha):
    student, teacher = tables()
    got = expected_gradient(road, student, teacher, alpha, single_step=False, skip_current=False)
    torch.testing.assert_close(got, exact_gradient(student, teacher), rtol=0, atol=1e-8)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize(
    "options",
    [
        dict(importance="token"),
        dict(single_weight=False),
        dict(skip_current=False),
        dict(gamma=0.9),
        dict(length_norm=True),
    ],
    ids=str,
)
def test_every_departure_from_the_exact_estimator_is_seen(road, options):
    student, teacher = tables()
    error = expected_gradient(road, student, teacher, 0.3, **options) - exact_gradient(student, teacher)
    assert error.abs().max() > 1e-3


def exact_gradient_of(costs, student, teacher):
    """Of E_q sum_t D_t, through the choice of the tokens too."""
    total = 0.0
    for answer in ANSWERS:
        rows = [ROW[answer[:t]] for t in range(len(answer))]
        each = costs(*(table[rows].log_softmax(-1) for table in (student, teacher)))
        total = total + token_logprobs(student, answer).sum().exp() * each.sum()
    return torch.autograd.grad(total, student)[0]


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
@pytest.mark.parametrize("kind", [ReverseKL, ForwardKL, JensenShannon], ids=lambda each: each.__name__)
def test_the_long_part_of_a_divergence_makes_its_gradient_that_of_the_expected_sum(road, kind):
    student, teacher = tables()
    wanted = exact_gradient_of(kind().costs, student, teacher)
    if kind is ReverseKL:
        torch.testing.assert_close(wanted, exact_gradient(student, teacher), rtol=0, atol=1e-12)
    got = expected_gradient(road, student, teacher, 0.0, kind(long_part=True))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)
    short = expected_gradient(road, student, teacher, 0.0, kind())
    assert (short - wanted).abs().max() > 1e-3  # the departure is seen


def test_the_set_of_topk_is_held_fixed_in_its_long_part():
    student, teacher = tables()
    objective = TopK(1, of="student", long_part=True)
    got = expected_gradient(ROADS[0], student, teacher, 0.0, objective)
    torch.testing.assert_close(got, exact_gradient_of(objective.costs, student, teacher), rtol=0, atol=1e-8)
