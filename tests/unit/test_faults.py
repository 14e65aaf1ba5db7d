"""Faults of other projects (docs/faults.md): ours passes a check by another road, and the faulty formula does not."""

import pytest
import torch

from minillm import divergences, losses
from minillm.models import LanguageModel, Lora
from minillm.objectives import MiniLLM
from minillm.rollout import decode, prepared
from minillm.rollout.micro_batch import micro_batches
from tests.helpers import own_logits, prompt_batch
from tests.tiny import make_model, make_pair

GENERATOR = torch.Generator()
OPTIONS = dict(stop_ids=(0,), pad_id=0, max_new_tokens=10, batch_size=8)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR.manual_seed(seed))


def differs(one, other, by=1e-3):
    return not torch.allclose(one, other, rtol=by, atol=by)


def returns_by_a_loop(rewards, mask, gamma):
    """sum_{t' >= t} gamma^(t' - t) r_t', divided by the number of tokens."""
    out = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        n = int(mask[row].sum())
        for t in range(n):
            out[row, t] = sum(gamma ** (k - t) * rewards[row, k] for k in range(t, n)) / (n - t)
    return out


def test_an_advantage_times_gamma_to_the_absolute_position():
    """TRL 1.14's formula: the powers count from the beginning of the answer, and underflow on long ones."""

    def faulty(rewards, mask, gamma):
        powers = gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype)
        return (rewards * mask * powers).flip(1).cumsum(1).flip(1)

    rewards, mask = random(2, 6), torch.ones(2, 6, dtype=torch.bool)
    options = dict(gamma=0.9, length_norm=False, skip_current=False)
    wanted = returns_by_a_loop(rewards, mask, 0.9) * torch.arange(6, 0, -1)
    torch.testing.assert_close(losses.discounted_returns(rewards, mask, **options), wanted)
    assert differs(faulty(rewards, mask, 0.9), wanted)
    long, all_of = random(1, 9000), torch.ones(1, 9000, dtype=torch.bool)
    ours = losses.discounted_returns(long.float(), all_of, **options)
    powers = faulty(torch.ones(1, 9000), all_of, 0.9)
    assert ours.isfinite().all() and (faulty(long.float(), all_of, 0.9) / powers).isnan().any()


def test_padding_inside_the_advantage():
    student, teacher = random(2, 5, seed=1), random(2, 5, seed=2)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    rewards = losses.token_rewards(student, teacher, mask)
    options = dict(gamma=1.0, length_norm=True, skip_current=False)
    wanted = returns_by_a_loop(teacher - student, mask, 1.0)
    torch.testing.assert_close(losses.discounted_returns(rewards, mask, **options), wanted)
    everywhere = torch.ones_like(mask)
    assert differs(losses.discounted_returns(teacher - student, everywhere, **options) * mask, wanted)


def test_a_denominator_for_each_micro_batch():
    """Of answers of 1 and of 9 tokens: a mean of means gives the short one as much weight."""
    values, lengths = random(10), (1, 9)
    whole, parts = values.mean(), values.split(lengths)
    torch.testing.assert_close(sum(each.sum() / len(values) for each in parts), whole)
    assert differs(sum(each.mean() for each in parts) / 2, whole)


def test_cross_entropy_on_ones_own_samples():
    """Its expected gradient is 0: it teaches nothing of the teacher. That of the reverse KL is not."""
    logits, teacher = random(7).requires_grad_(), torch.log_softmax(random(7, seed=1), -1)
    logprobs = torch.log_softmax(logits, -1)
    (faulty,) = torch.autograd.grad(-(logprobs.detach().exp() * logprobs).sum(), logits, retain_graph=True)
    (ours,) = torch.autograd.grad(divergences.reverse_kl(logprobs, teacher), logits)
    assert faulty.abs().max() < 1e-12 and ours.abs().max() > 1e-2


def test_a_loss_of_the_base_model_under_lora():
    """The loss must be of the adapted model: that of the base, or of a head beside it, has no gradient to adapters."""
    network, base = make_model(), make_model()
    Lora(rank=3).onto(network, base="b")
    with torch.no_grad():
        for name, each in network.named_parameters():
            if "lora_B" in name:
                each.copy_(0.3 * random(*each.shape))
    batch = prompt_batch()
    rollout = decode(LanguageModel(network), None, batch, seeds=[1, 2, 3], **OPTIONS)
    mask, ids = rollout.response_mask_BR, rollout.response_ids_BR
    of = {
        name: losses.token_logprobs(own_logits(each, rollout), ids[mask])
        for name, each in (("ours", network), ("faulty", base))
    }
    torch.testing.assert_close(rollout.student_logprobs_BR[mask], of["ours"])
    assert differs(rollout.student_logprobs_BR[mask], of["faulty"])


def test_states_of_the_wrong_tokens():
    """Off by one: the state that predicts a token is that of the token before it."""
    model = LanguageModel(make_model())
    rollout = decode(model, None, prompt_batch(), seeds=[1, 2, 3], **OPTIONS)
    for micro in micro_batches(rollout, 1000):
        states, ids = model.hidden(micro.ids_BS).flatten(0, 1), micro.take(rollout.response_ids_BR)
        wanted = micro.take(rollout.student_logprobs_BR)
        torch.testing.assert_close(losses.token_logprobs(model.head()(states[micro.state_N]), ids), wanted)
        shifted = (micro.state_N + 1).clamp(max=len(states) - 1)
        assert differs(losses.token_logprobs(model.head()(states[shifted]), ids), wanted)


def test_a_weight_that_is_not_detached():
    """With a gradient through w = q / b the policy gradient is counted twice."""
    logits = random(6).requires_grad_()
    logprobs, behaviour = torch.log_softmax(logits, -1), torch.log_softmax(random(6, seed=1), -1)
    advantages = random(6, seed=2)
    weights, options = (logprobs - behaviour).exp(), dict(clip=1e9, clip_weighted_ratio=False)
    wanted = -(logprobs.exp() * advantages).sum()
    (wanted,) = torch.autograd.grad(wanted, logits, retain_graph=True)
    old = logprobs.detach()
    ours = (behaviour.exp() * losses.clipped_policy_losses(logprobs, old, advantages, weights, **options)).sum()
    faulty = (behaviour.exp() * -weights * advantages * (logprobs - old).exp()).sum()
    (ours,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (faulty,) = torch.autograd.grad(faulty, logits)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(faulty, 2 * wanted)
    assert differs(faulty, wanted)


def test_an_end_token_that_is_masked_as_padding():
    """Where both are one token, a mask by the token leaves the end out, and nobody learns to stop."""
    network = make_model()
    free = decode(LanguageModel(network), None, prompt_batch(), seeds=None, **OPTIONS | {"stop_ids": (10**6,)})
    end = int(free.response_ids_BR[0, 2])
    options = OPTIONS | {"stop_ids": (end,), "pad_id": end}
    rollout = decode(LanguageModel(network), None, prompt_batch(), seeds=None, **options)
    first = free.response_ids_BR[0].tolist().index(end)
    ours, faulty = rollout.response_mask_BR[0], rollout.response_ids_BR[0] != end
    assert int(ours.sum()) == first + 1 and rollout.response_ids_BR[0][ours][-1] == end
    assert int(faulty.sum()) == first


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_teacher_scored_at_another_temperature(temperature):
    pair = make_pair()
    options = dict(seeds=[1, 2, 3], alpha=0.3, temperature=temperature, **OPTIONS)
    rollout = decode(LanguageModel(pair.student), pair.teacher, prompt_batch(), **options)
    mask, logits = rollout.response_mask_BR, own_logits(pair.teacher.network, rollout)
    ids, ours = rollout.response_ids_BR[mask], rollout.teacher_logprobs_BR[mask]
    torch.testing.assert_close(ours, losses.token_logprobs(logits / temperature, ids))
    assert differs(ours, losses.token_logprobs(logits, ids))


def test_a_plain_sum_over_the_top_k():
    """Without the tail its gradient at p = q is not 0: it moves probability out of the set."""
    logits = random(9).requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    teacher = logprobs.detach()
    top = teacher.topk(3).indices
    ours = divergences.top_k_with_tail(logprobs, teacher, 3)
    faulty = (logprobs[top].exp() * (logprobs[top] - teacher[top])).sum()
    (ours,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (faulty,) = torch.autograd.grad(faulty, logits)
    assert ours.abs().max() < 1e-12 and faulty.abs().max() > 1e-2
    assert (faulty[top].sum() > 0).item()  # a step against it lowers the set's logits


def test_a_renormalised_top_1():
    student, teacher = (torch.log_softmax(random(9, seed=seed), -1) for seed in (1, 2))
    top = teacher.topk(1).indices
    one, other = (torch.log_softmax(each[top], -1) for each in (student, teacher))
    assert (one.exp() * (one - other)).sum() == 0  # whatever the two are
    assert divergences.top_k_with_tail(student, teacher, 1) > 1e-2


def test_a_jensen_shannon_with_a_wrong_gradient():
    """The mixture's gradient cancels between the two parts: kept in one of them only, the sum is wrong."""
    logits, teacher, beta = random(8), torch.log_softmax(random(8, seed=1), -1), 0.3

    def value(logits, fixed=None):
        student = torch.log_softmax(logits, -1)
        mixture, other = (
            torch.log(beta * teacher.exp() + (1 - beta) * each.exp())
            for each in (student, student if fixed is None else fixed)
        )
        of_teacher = (teacher.exp() * (teacher - mixture)).sum()
        return beta * of_teacher + (1 - beta) * (student.exp() * (student - other)).sum()

    steps = 1e-6 * torch.eye(8, dtype=torch.float64)
    wanted = torch.stack([(value(logits + step) - value(logits - step)) / 2e-6 for step in steps])
    leaf = logits.clone().requires_grad_()
    divergences.jensen_shannon(torch.log_softmax(leaf, -1), teacher, beta).backward()
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-6, atol=1e-9)
    fixed = torch.log_softmax(logits, -1)
    assert differs(torch.autograd.functional.jacobian(lambda each: value(each, fixed), logits), wanted)


def test_the_objective_is_made_of_these_functions():
    pair = make_pair()
    rollout = decode(LanguageModel(pair.student), pair.teacher, prompt_batch(), seeds=[1, 2, 3], alpha=0.2, **OPTIONS)
    made = prepared(rollout, MiniLLM(skip_current=False)).constants["advantages"]
    gap = rollout.teacher_logprobs_BR - rollout.student_logprobs_BR
    torch.testing.assert_close(made, returns_by_a_loop(gap, rollout.response_mask_BR, 1.0))
