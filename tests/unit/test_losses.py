"""Each function against another road: closed forms, brute-force loops, finite values at the edges."""

import math

import pytest
import torch

from minillm import losses

MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def rewards_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force_returns(rewards, mask, gamma, length_norm, skip_current):
    out = torch.zeros_like(rewards)
    for b in range(rewards.shape[0]):
        n = int(mask[b].sum())
        for t in range(n):
            first = t + 1 if skip_current else t
            terms = [gamma ** (s - first) * rewards[b, s].item() for s in range(first, n)]
            if terms:
                out[b, t] = sum(terms) / (len(terms) if length_norm else 1)
    return out


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("skip_current", [True, False])
def test_discounted_returns_equal_a_brute_force_loop(gamma, length_norm, skip_current):
    rewards = rewards_of()
    options = dict(gamma=gamma, length_norm=length_norm, skip_current=skip_current)
    got = losses.discounted_returns(rewards, MASK, **options)
    torch.testing.assert_close(got, brute_force_returns(rewards, MASK, **options), rtol=0, atol=1e-12)
    assert (got[~MASK] == 0).all()


def test_the_last_token_has_nothing_to_come():
    got = losses.discounted_returns(rewards_of(), MASK, gamma=1.0, length_norm=True, skip_current=True)
    assert got[0, 3] == 0 and got[1, 1] == 0


def test_the_discount_does_not_underflow_on_long_answers():
    rewards, mask = torch.ones(1, 4000), torch.ones(1, 4000, dtype=torch.bool)
    got = losses.discounted_returns(rewards, mask, gamma=0.95, length_norm=False, skip_current=False)
    assert torch.isfinite(got).all()
    assert got[0, 0].item() == pytest.approx(20.0, rel=1e-4)  # 1 / (1 - gamma)


def test_rewards_are_scaled_clipped_and_zero_outside_the_mask():
    student = torch.tensor([[-1.0, -2.0, -300.0, -math.inf]])
    teacher = torch.tensor([[-2.0, -1.0, 0.0, -math.inf]])
    mask = torch.tensor([[True, True, True, False]])
    got = losses.token_rewards(student, teacher, mask, scaling=0.5, clip=100.0)
    assert got.tolist() == [[-2.0, 2.0, 100.0, 0.0]]
    assert losses.token_rewards(student, teacher, mask).tolist() == [[-1.0, 1.0, 300.0, 0.0]]


def test_rewards_and_weights_carry_no_gradient():
    student = torch.randn(2, 4, requires_grad=True)
    teacher = torch.randn(2, 4)
    assert not losses.token_rewards(student, teacher, MASK).requires_grad
    assert not losses.importance_weights(student, teacher, 0.2).requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_importance_weights_are_q_over_the_mixture_and_bounded(alpha):
    q, p = torch.rand(50, 2, dtype=torch.float64).unbind(-1)
    got = losses.importance_weights(q.log(), p.log(), alpha)
    torch.testing.assert_close(got, q / (alpha * p + (1 - alpha) * q), rtol=1e-12, atol=0)
    assert got.max() <= 1 / (1 - alpha) + 1e-12


def test_prefix_weights_multiply_what_came_before():
    weights = torch.tensor([[2.0, 3.0, 5.0, 7.0]])
    single, reward = losses.prefix_weights(weights, torch.tensor([[True, True, True, False]]))
    assert single[0, :3].tolist() == [1.0, 2.0, 6.0]
    assert reward[0, :3].tolist() == [2.0, 6.0, 30.0]


def test_whitening_over_all_cells_and_over_the_mask():
    values = torch.where(MASK, rewards_of(), torch.zeros(()).double())
    every = losses.whiten(values)
    assert every.mean().item() == pytest.approx(0, abs=1e-12)
    assert every.var(correction=0).item() == pytest.approx(1, rel=1e-6)
    masked = losses.whiten(values, MASK)
    assert masked[MASK].mean().item() == pytest.approx(0, abs=1e-12)
    assert masked[MASK].var(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert (masked[~MASK] == 0).all()
    assert not torch.allclose(every[MASK], masked[MASK])


def loop_policy_loss(new, old, advantages, weights, mask, clip, weighted, n):
    total = 0.0
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                ratio = math.exp(new[b, t] - old[b, t])
                a, w = advantages[b, t].item(), weights[b, t].item()
                if weighted:
                    ratio, w = ratio * w, 1.0
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                total -= w * min(a * ratio, a * clipped)
    return total / n


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("n_tokens", [None, 11, torch.tensor(11.0)])
def test_the_clipped_loss_equals_a_loop(weighted, n_tokens):
    g = torch.Generator().manual_seed(3)
    new, old, advantages = (torch.randn(2, 4, dtype=torch.float64, generator=g) for _ in range(3))
    weights = torch.rand(2, 4, dtype=torch.float64, generator=g) + 0.5
    got = losses.clipped_policy_loss(
        new, old, advantages, weights, MASK, clip=0.2, clip_weighted_ratio=weighted, n_tokens=n_tokens
    )
    n = int(MASK.sum()) if n_tokens is None else 11
    assert got.item() == pytest.approx(
        loop_policy_loss(new, old, advantages, weights, MASK, 0.2, weighted, n), abs=1e-12
    )


def test_garbage_outside_the_mask_changes_neither_loss_nor_gradient():
    new = torch.randn(2, 4, dtype=torch.float64)
    old, advantages, weights = torch.randn(2, 4).double(), torch.randn(2, 4).double(), torch.ones(2, 4).double()
    results = []
    for garbage in (0.0, math.nan):
        x = torch.where(MASK, new, torch.tensor(garbage).double()).requires_grad_()
        loss = losses.clipped_policy_loss(x, old, advantages, weights, MASK, clip=0.2, clip_weighted_ratio=True)
        loss.backward()
        results.append((loss.item(), x.grad))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0)


def test_reverse_kl_is_the_sum_over_the_vocabulary_and_zero_for_equal_models():
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64).requires_grad_(), torch.randn(2, 3, 7).double()
    q, p = student.softmax(-1), teacher.softmax(-1)
    torch.testing.assert_close(losses.reverse_kl(student, teacher), (q * (q.log() - p.log())).sum(-1))
    assert losses.reverse_kl(student, student).abs().max() < 1e-14


def test_the_gradient_of_reverse_kl_is_q_times_the_centred_log_ratio():
    student, teacher = torch.randn(5, 7, dtype=torch.float64).requires_grad_(), torch.randn(5, 7).double()
    losses.reverse_kl(student, teacher).sum().backward()
    with torch.no_grad():
        q, ratio = student.softmax(-1), student.log_softmax(-1) - teacher.log_softmax(-1)
        expected = q * (ratio - (q * ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(student.grad, expected)


def test_soft_cross_entropy_is_entropy_plus_forward_kl_and_trains_the_student_only():
    student, teacher = (torch.randn(5, 7, dtype=torch.float64).requires_grad_() for _ in range(2))
    got = losses.soft_cross_entropy(student, teacher)
    p = teacher.softmax(-1)
    torch.testing.assert_close(got, -(p * student.log_softmax(-1)).sum(-1))
    got.sum().backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, student.softmax(-1).detach() - p.detach())


def test_a_token_of_probability_zero_gives_no_nan():
    student = torch.tensor([[0.3, -math.inf, 0.1]], requires_grad=True)
    teacher = torch.tensor([[0.2, 0.5, -0.1]])
    losses.reverse_kl(student, teacher).sum().backward()
    assert torch.isfinite(student.grad).all()
    assert torch.isfinite(losses.soft_cross_entropy(teacher, student.detach())).all()


@pytest.mark.parametrize(
    ("given", "computed"), [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_log_softmax_raises_half_types_and_keeps_float64(given, computed):
    logits = torch.randn(2, 5).to(getattr(torch, given))
    assert losses.token_logprobs(logits, torch.zeros(2, dtype=torch.long)).dtype == getattr(torch, computed)


def two_distributions() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student, with a gradient, and of a teacher."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(2))
    return logits.requires_grad_(), teacher


def test_k1_backpropagated_has_zero_mean_gradient_and_ours_has_not():
    """The trap: log q - log p of sampled tokens is an unbiased KL, but its own gradient averages to zero."""
    logits, teacher = two_distributions()
    logq = logits.log_softmax(-1)
    (k1,) = torch.autograd.grad((logq.exp().detach() * (logq - teacher.log_softmax(-1))).sum(), logits)
    (ours,) = torch.autograd.grad(losses.reverse_kl(logits, teacher).sum(), logits)
    assert k1.abs().max() < 1e-12
    assert ours.abs().max() > 1e-2


def test_k3_backpropagated_gives_the_gradient_of_the_forward_kl():
    """The trap: r - 1 - log r with r = p/q estimates the reverse KL, but its gradient is the forward KL's."""
    logits, teacher = two_distributions()
    logq, logp = logits.log_softmax(-1), teacher.log_softmax(-1)
    log_r = logp - logq
    (k3,) = torch.autograd.grad((logq.exp().detach() * (log_r.exp() - 1 - log_r)).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits, retain_graph=True)
    (ours,) = torch.autograd.grad(losses.reverse_kl(logits, teacher), logits)
    torch.testing.assert_close(k3, forward)
    assert (k3 - ours).abs().max() > 1e-2
