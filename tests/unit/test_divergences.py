"""Divergences against their definitions, finite differences, limits, and probabilities of exactly 0."""

import math
from functools import partial

import pytest
import torch

from minillm import divergences as d

V = 7
EXACT = {
    "reverse_kl": d.reverse_kl,
    "forward_kl": d.forward_kl,
    "jsd 0": partial(d.jensen_shannon, beta=0.0),
    "jsd 0.3": partial(d.jensen_shannon, beta=0.3),
    "jsd 1": partial(d.jensen_shannon, beta=1.0),
    "skew_forward": partial(d.skew_forward, alpha=0.1),
    "skew_reverse": partial(d.skew_reverse, alpha=0.1),
    "skew_forward 0": partial(d.skew_forward, alpha=0.0),
    "adaptive_kl": partial(d.adaptive_kl, mass=0.5),
    "total_variation": d.total_variation,
    "entropy_aware": partial(d.entropy_aware, weight=0.7, threshold=1.5),
    **{
        f"top {k} {of} {kind}": partial(d.top_k_with_tail, k=k, of=of, kind=kind)
        for k, of in ((1, "student"), (3, "teacher"), (3, "both"), (V, "teacher"))
        for kind in ("reverse", "forward")
    },
}


def logits(seed, *shape):
    return 1.5 * torch.randn(*shape, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(seed=0, rows=5):
    return tuple(torch.log_softmax(logits(seed + n, rows), -1) for n in (1, 2))


def kl(a, b):
    """Of two lists of probabilities."""
    return sum(x * (math.log(x) - math.log(y)) if x else 0.0 for x, y in zip(a, b, strict=True))


def mixed(a, b, share):
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def by_definition(name, q, p):
    """By plain Python numbers."""
    kind, *rest = name.split()
    match kind:
        case "reverse_kl":
            return kl(q, p)
        case "forward_kl":
            return kl(p, q)
        case "jsd":
            b = float(rest[0])
            m = mixed(p, q, b)
            return kl(p, q) if b == 0 else kl(q, p) if b == 1 else b * kl(p, m) + (1 - b) * kl(q, m)
        case "skew_forward":
            return kl(p, mixed(p, q, 0.0 if rest else 0.1))
        case "skew_reverse":
            return kl(q, mixed(q, p, 0.1))
        case "total_variation":
            return sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
        case "entropy_aware":
            uncertain = -sum(x * math.log(x) for x in p if x) > 1.5
            return kl(q, p) + (0.7 * kl(p, q) if uncertain else 0.0)
        case "adaptive_kl":
            head, reached = [], 0.0
            for token in sorted(range(len(p)), key=lambda token: (-p[token], token)):
                if reached < 0.5:
                    head.append(token)
                    reached += p[token]
            gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
            of_head, of_all = sum(gaps[token] for token in head), sum(gaps)
            return (of_head * kl(p, q) + (of_all - of_head) * kl(q, p)) / of_all if of_all else 0.0
        case "top":
            k, of, direction = int(rest[0]), rest[1], rest[2]
            chosen = set()
            for side, values in (("student", q), ("teacher", p)):
                if of in (side, "both"):
                    chosen |= set(sorted(range(len(p)), key=lambda token, values=values: -values[token])[:k])
            classes = [
                [each[token] for token in chosen] + [sum(each[token] for token in range(len(p)) if token not in chosen)]
                for each in (q, p)
            ]
            return kl(*classes) if direction == "reverse" else kl(*reversed(classes))


@pytest.mark.parametrize("name", EXACT)
def test_the_value_is_the_definition(name):
    student, teacher = pair()
    found = EXACT[name](student, teacher)
    wanted = [by_definition(name, q.exp().tolist(), p.exp().tolist()) for q, p in zip(student, teacher, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def held_fixed(name, student, teacher):
    """The divergence with the weights and sets that have no gradient as they are at this student."""
    if name.startswith("adaptive"):
        reverse, forward, whole = (each(student, teacher) for each in (d.reverse_kl, d.forward_kl, EXACT[name]))
        share = ((whole - reverse) / (forward - reverse)).detach()
        return lambda each: share * d.forward_kl(each, teacher) + (1 - share) * d.reverse_kl(each, teacher)
    if name.startswith("top"):
        _, k, of, kind = name.split()
        chosen = torch.zeros_like(teacher, dtype=torch.bool)
        for side, values in (("student", student), ("teacher", teacher)):
            if of in (side, "both"):
                chosen |= torch.zeros_like(chosen).scatter(-1, values.topk(int(k)).indices, True)

        def classes(each):
            tail = (each.exp() * ~chosen).sum(-1, keepdim=True)
            return torch.cat([each.exp() * chosen, tail], -1).log()

        kind = d.reverse_kl if kind == "reverse" else d.forward_kl
        return lambda each: kind(classes(each), classes(teacher))
    return lambda each: EXACT[name](each, teacher)


@pytest.mark.parametrize("name", EXACT)
def test_the_gradient_is_that_of_finite_differences_and_the_students_alone(name):
    student_logits, teacher = logits(1, 4), torch.log_softmax(logits(2, 4), -1).requires_grad_()
    student_logits.requires_grad_()
    EXACT[name](torch.log_softmax(student_logits, -1), teacher).sum().backward()
    assert teacher.grad is None
    fixed, step = held_fixed(name, torch.log_softmax(student_logits, -1).detach(), teacher.detach()), 1e-6
    for token in range(V):
        shift = torch.zeros(V, dtype=torch.float64)
        shift[token] = step
        up, down = (fixed(torch.log_softmax(student_logits.detach() + sign * shift, -1)) for sign in (1, -1))
        torch.testing.assert_close(student_logits.grad[:, token], (up - down) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", EXACT)
def test_it_is_0_at_equal_models_and_never_below(name):
    student, teacher = pair(3, rows=200)
    assert (EXACT[name](student, teacher) >= -1e-12).all()
    torch.testing.assert_close(EXACT[name](student, student), torch.zeros(200, dtype=torch.float64), atol=1e-12, rtol=0)


def test_limits():
    student, teacher = pair()
    reverse, forward = d.reverse_kl(student, teacher), d.forward_kl(student, teacher)
    close = dict(rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(d.jensen_shannon(student, teacher, 1e-5) / 1e-5, forward, **close)
    torch.testing.assert_close(d.jensen_shannon(student, teacher, 1 - 1e-5) / 1e-5, reverse, **close)
    torch.testing.assert_close(d.skew_forward(student, teacher, 1e-7), forward, **close)
    torch.testing.assert_close(d.skew_reverse(student, teacher, 1e-7), reverse, **close)
    torch.testing.assert_close(d.reverse_kl(teacher, student), forward)
    for of in ("student", "teacher", "both"):
        values = [d.top_k_with_tail(student, teacher, k, of) for k in range(1, V + 1)]
        assert all((each <= reverse + 1e-12).all() for each in values)
        torch.testing.assert_close(values[-1], reverse)
    torch.testing.assert_close(d.top_k_with_tail(student, teacher, V, kind="forward"), forward)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_probabilities_of_0(name, zero):
    """The value is the definition's, +inf where it is infinite; a finite value has a finite gradient."""
    raw = [logits(1, 3), logits(2, 3)]
    for side, values in zip(("student", "teacher"), raw, strict=True):
        if zero in (side, "both"):
            values[:, 2] = -math.inf
    student, teacher = raw[0].requires_grad_(), torch.log_softmax(raw[1], -1)
    found = EXACT[name](torch.log_softmax(student, -1), teacher)
    assert not found.isnan().any()
    for row, value in enumerate(found):
        probs = [torch.log_softmax(each[row].detach(), -1).exp().tolist() for each in (student, raw[1])]
        try:
            wanted = by_definition(name, *probs)
        except ValueError:  # the logarithm of 0
            wanted = math.inf
        assert value.item() == pytest.approx(wanted, abs=1e-12)
        if value.isfinite():
            (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
            assert gradient.isfinite().all()
