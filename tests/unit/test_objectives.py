"""Objectives beyond MiniLLM: the gradient of exact ones by finite differences and in chunks, the expected gradient of
sampled ones by enumeration, and the configs."""

from dataclasses import replace

import pytest
import torch

from minillm import divergences
from minillm.common.errors import ConfigError
from minillm.common.types import Rollout
from minillm.objectives import (
    AdaptiveKL,
    EntropyAware,
    Extrapolated,
    ForwardKL,
    ImportanceWeighted,
    JensenShannon,
    ReverseKL,
    Sampled,
    SampledBaseline,
    SkewForward,
    SkewReverse,
    TopK,
    TotalVariation,
)
from minillm.rollout import prepared
from minillm.testing import check_objective
from tests.conf.test_compose import composed, settings

EXACT = {
    "reverse_kl": ReverseKL(), "forward_kl": ForwardKL(), "jsd": JensenShannon(), "skew_forward": SkewForward(),
    "skew_reverse": SkewReverse(), "total_variation": TotalVariation(), "entropy_aware": EntropyAware(0.5, 1.0),
}  # fmt: skip
SAMPLED = {
    "extrapolated": Extrapolated(), "sampled": Sampled(), "sampled_baseline": SampledBaseline(),
    "iw_opd": ImportanceWeighted(),
}  # fmt: skip


@pytest.mark.parametrize(
    "objective", [*EXACT.values(), TopK(20), ForwardKL(long_part=True)], ids=lambda each: type(each).__name__
)
def test_chunks_and_finite_differences(objective):
    """adaptive_kl and topk hold weights and sets fixed in gradients; their gradients are in test_divergences.py."""
    check_objective(objective)


def rollout_of(student_V, teacher_V, tokens):
    """One-token answers to as many equal prompts."""
    ids = tokens.unsqueeze(-1)
    values = [each[tokens].unsqueeze(-1) for each in (student_V, teacher_V)]
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Rollout(ids, mask, ids, mask, *values, behaviour_logprobs_BR=values[0])


@pytest.mark.parametrize("objective", [Sampled(None), SampledBaseline(None), ImportanceWeighted(None, gain=0.0)])
def test_the_expected_gradient_is_that_of_the_token_level_reverse_kl(objective):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    teacher, student = torch.log_softmax(teacher, -1), torch.log_softmax(logits, -1)
    tokens = torch.arange(6)
    constants = prepared(rollout_of(student, teacher, tokens), objective).constants
    constants = {name: each.flatten() for name, each in constants.items()}
    leaf = logits.clone().requires_grad_()
    student_NV = torch.log_softmax(leaf, -1).expand(6, -1)
    values_N = objective.token_loss(student_NV, teacher.expand(6, -1), tokens, constants).values_N
    (student.exp() * values_N).sum().backward()
    other = logits.clone().requires_grad_()
    divergences.reverse_kl(torch.log_softmax(other, -1), teacher).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-12)


def answers(advantages):
    ids = torch.zeros(1, len(advantages), dtype=torch.long)
    student = torch.full(ids.shape, -1.0, dtype=torch.float64)
    teacher = student + torch.tensor([advantages], dtype=torch.float64)
    mask = torch.tensor([[True] * (len(advantages) - 1) + [False]])
    return Rollout(ids, mask, ids, mask, student, teacher, behaviour_logprobs_BR=student)


def test_early_tokens_weigh_more_in_iw_opd():
    made = prepared(answers([1.0, -3.0, 0.0, 9.0]), ImportanceWeighted(gain=0.5)).constants["advantages"]
    # |A| before: 0, 1, 4 of 4; the last one is padding.
    torch.testing.assert_close(made, torch.tensor([[1.5, -3 * (1 + 0.5 * 0.75), 0.0, 0.0]], dtype=torch.float64))
    still = prepared(answers([0.0, 0.0, 1.0]), ImportanceWeighted()).constants["advantages"]
    assert (still == 0).all()


def test_extrapolated_is_the_definition_and_with_gain_1_sampled():
    generator = torch.Generator().manual_seed(0)
    q, p, start = -torch.rand(3, 1, 4, dtype=torch.float64, generator=generator)
    ids, mask = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[True, True, True, False]])
    rollout = Rollout(ids, mask, ids, mask, q, p, behaviour_logprobs_BR=q, start_logprobs_BR=start)
    made = prepared(rollout, Extrapolated(gain=1.25)).constants["advantages"]
    by_hand = [-(q[0, t] - start[0, t] - 1.25 * (p[0, t] - start[0, t])).item() for t in range(3)]
    assert made[0].tolist() == pytest.approx([*by_hand, 0.0], abs=1e-12)
    same = prepared(rollout, Extrapolated(gain=1.0)).constants["advantages"]
    torch.testing.assert_close(same, prepared(rollout, Sampled()).constants["advantages"], rtol=0, atol=1e-12)


def test_the_ratio_is_clipped_where_the_advantage_would_push_on():
    constants = {"behaviour": torch.tensor([-1.0, -1.0]), "advantages": torch.tensor([2.0, -2.0])}
    student_NV = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    found = Sampled(0.2).token_loss(student_NV, None, torch.tensor([0, 0]), constants)
    ratio = 0.9 / torch.tensor(-1.0).exp()
    torch.testing.assert_close(found.values_N, torch.stack([torch.tensor(-2 * 1.2), 2 * ratio]))
    assert found.parts["clipped"].tolist() == [1.0, 1.0]


@pytest.mark.some(4)
@pytest.mark.parametrize("name", [*EXACT, *SAMPLED, "adaptive_kl", "topk"])
def test_each_has_a_config_that_leaves_the_corpus_out(name):
    given = ["objective.weight=0.5", "objective.threshold=1.0"] if name == "entropy_aware" else []
    made = settings(f"objective={name}", *given)
    wanted = (EXACT | SAMPLED | {"adaptive_kl": AdaptiveKL(), "topk": TopK()})[name]
    assert made.objective == wanted and not made.regulariser.on
    assert settings(f"objective={name}", *given, "regulariser=pretrain").regulariser.on


def test_what_cannot_be():
    for made, text in (
        (lambda: JensenShannon(1.5), "beta=1.5"), (lambda: SkewForward(-1), "alpha=-1"), (lambda: TopK(0), "k=0"),
        (lambda: AdaptiveKL(0.0), "mass=0.0"), (lambda: Sampled(0.0), "clip=0.0"),
        (lambda: EntropyAware(-1.0, 1.0), "weight=-1.0"), (lambda: ImportanceWeighted(gain=-1), "gain=-1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            made()
    with pytest.raises(ConfigError, match="objective.weight"):
        settings("objective=entropy_aware")
    with pytest.raises(ConfigError, match="ReverseKL with regime=supervised: wanted regime=on_policy"):
        settings("recipe=kd", "pair=gpt2_120m", "objective=reverse_kl", "objective.long_part=true")


def test_opd_is_one_step_a_rollout_of_the_students_own_answers():
    made = settings("recipe=opd", "pair=own", "model.student=a/b", "model.teacher=a/c")
    assert made.objective == ReverseKL() and made.sampler.alpha == 0 and not made.regulariser.on
    assert made.regime.steps_per_rollout == 1 and made.optim.learning_rate == 5e-6
    assert made.callbacks["checkpoints"].monitor == "reverse_kl"
    lora, own = ["recipe=opd", "model.student=a/b", "model.teacher=a/c", "lora=default"], "optim.learning_rate=1e-3"
    assert settings(*lora).optim.learning_rate == 1e-4 and settings(*lora, own).optim.learning_rate == 1e-3
    assert replace(made.objective) == ReverseKL() and composed("recipe=opd").start.steps == 0
