"""The chunked loss against the plain one: values, gradients to hidden states, weights and bias, every kind of head."""

import pytest
import torch

from minillm import divergences, losses
from minillm.common.errors import ConfigError
from minillm.models import Head
from minillm.objectives import TEACHER, CrossEntropy, MiniLLM, Objective, ReverseKL, TokenLoss
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss

N, V, H, T = 13, 37, 6, 9  # tokens, vocabulary, widths of student and teacher
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "Granite": {"scale": 1 / 8},
    "Cohere": {"scale": 0.5, "bias": True},
    "Gemma 2": {"softcap": 3.0},
    "all, at a temperature": {"scale": 0.7, "softcap": 2.0, "bias": True, "temperature": 1.3},
}
REVERSE, SOFT = "reverse KL", "soft cross entropy"
WANTED = [(), (REVERSE,), (SOFT,), (REVERSE, SOFT)]


def head_of(width, seed, dtype, bias=False, **options):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return Head(weight, bias, **options)


def case(dtype, options):
    generator = torch.Generator().manual_seed(3)
    hidden = [torch.randn(N, width, generator=generator, dtype=torch.float64).to(dtype) for width in (H, T)]
    student = Side(hidden[0].requires_grad_(), head_of(H, 1, dtype, **options))
    teacher = Side(hidden[1], head_of(T, 2, dtype, **options))
    ids = torch.randint(V, (N,), generator=generator)
    slopes = torch.randn(3, N, generator=generator, dtype=torch.float64).to(dtype)
    return student, teacher, ids, {"a": slopes[0], "k": slopes[1], "c": slopes[2]}


class Weighted(Objective):
    """Not linear in log q(y), as a policy ratio is not."""

    def __init__(self, wanted):
        self.wanted, self.needs = wanted, frozenset({TEACHER} if wanted else ())

    def token_loss(self, student_NV, teacher_NV, ids_N, constants):
        logprobs_N = student_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
        values_N = constants["a"] * (logprobs_N + 2).exp()
        if REVERSE in self.wanted:
            values_N = values_N + constants["k"] * divergences.reverse_kl(student_NV, teacher_NV)
        if SOFT in self.wanted:
            values_N = values_N + constants["c"] * divergences.cross_entropy(student_NV, teacher_NV)
        return TokenLoss(values_N, {"sum": logprobs_N})


def grads(road, dtype, options, wanted):
    student, teacher, ids, slopes = case(dtype, options)
    output = road(Weighted(wanted), student, teacher, ids, slopes, normaliser=1)
    (3 * output.loss).backward()
    leaves = [student.hidden_NH, student.head.weight_VH, student.head.bias_V]
    assert teacher.head.weight_VH.grad is None
    return [output.loss.detach(), output.parts["sum"], *(each.grad for each in leaves if each is not None)]


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunks_give_the_plain_loss_and_gradient(options, wanted, rows, dtype, close):
    road = LinearLoss(chunk_mb=rows * V * torch.finfo(dtype).bits / 8 / 2**20 * 1.001)
    expected = grads(LinearLoss(None), dtype, options, wanted)
    for ours, plain in zip(grads(road, dtype, options, wanted), expected, strict=True):
        assert (ours - plain).abs().max() <= close * plain.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
def test_the_values_alone_are_the_same_numbers(options):
    student, teacher, ids, _ = case(torch.float64, options)
    logq, logp = (losses.log_softmax(side.logits()).detach() for side in (student, teacher))
    chosen = [each.gather(-1, ids.unsqueeze(-1)).squeeze(-1) for each in (logq, logp)]
    kl = [(one.exp() * (one - other)).sum(-1) for one, other in ((logq, logp), (logp, logq))]
    for road in (LinearLoss(None), LinearLoss(1e-3)):
        found = [road.logprobs(student, ids), road.costs(ReverseKL(), student, teacher, ids)]
        found += road.divergences(student, teacher, ids)
        for ours, plain in zip(found, [chosen[0], kl[0], *chosen, *kl], strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
            assert not ours.requires_grad


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
def test_columns_are_the_same_logits_the_other_way_round(options):
    student, *_ = case(torch.float64, options)
    torch.testing.assert_close(student.head.columns(student.hidden_NH).T, student.logits(), rtol=0, atol=1e-12)


def test_no_more_rows_than_a_chunk_go_through_a_head_at_a_time(monkeypatch):
    seen = []
    call = Head.__call__
    monkeypatch.setattr(Head, "__call__", lambda self, hidden: seen.append(len(hidden)) or call(self, hidden))
    grads(LinearLoss(chunk_mb=4 * V * 8 / 2**20 * 1.001), torch.float64, {}, (REVERSE,))
    assert seen == [4, 4, 4, 4, 4, 4, 1, 1]  # student, teacher of each chunk


def test_no_tokens_give_no_loss_and_no_gradient():
    student, teacher, ids, slopes = case(torch.float64, {})
    empty = Side(student.hidden_NH[:0], student.head), Side(teacher.hidden_NH[:0], teacher.head)
    for road in (LinearLoss(None), LinearLoss()):
        none = {name: each[:0] for name, each in slopes.items()}
        output = road(Weighted((REVERSE,)), *empty, ids[:0], none, normaliser=1)
        output.loss.backward()
        assert output.loss == 0 and student.head.weight_VH.grad.abs().max() == 0
        assert road.costs(ReverseKL(), *empty, ids[:0]).shape == (0,)


@pytest.mark.parametrize("objective", [MiniLLM(), CrossEntropy(0.5)], ids=lambda each: type(each).__name__)
def test_under_autocast_products_are_half_and_gradients_stay_close(objective):
    """trainer.precision=bf16-mixed: float32 weights, products in bfloat16, softmax in float32."""
    results = []
    for road in (LinearLoss(None), LinearLoss(1e-3)):
        student, teacher, ids, slopes = case(torch.float32, {})
        weights = {"single_weights": slopes["c"], "long_weights": slopes["a"].exp()}
        constants = weights | {"old_logprobs": slopes["a"], "advantages": slopes["k"]}
        with torch.autocast("cpu", torch.bfloat16):
            loss = road(objective, student, teacher, ids, constants, normaliser=N).loss
        loss.backward()
        assert student.head.weight_VH.grad.dtype == torch.float32
        results.append((loss.detach(), student.hidden_NH.grad, student.head.weight_VH.grad))
    for plain, chunked in zip(*results, strict=True):
        assert (plain - chunked).abs().max() < 0.03 * plain.abs().max()


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same(bias):
    grads = []
    for frozen in (False, True):
        student, teacher, ids, slopes = case(torch.float64, {"bias": bias})
        student.head.weight_VH.requires_grad_(not frozen)
        LinearLoss(1e-3)(Weighted((REVERSE,)), student, teacher, ids, slopes, normaliser=1).loss.backward()
        assert (student.head.weight_VH.grad is None) == frozen
        grads.append(student.hidden_NH.grad)
    assert torch.equal(*grads)


def test_a_second_backward_pass_is_refused():
    student, teacher, ids, slopes = case(torch.float64, {})
    loss = LinearLoss()(Weighted(()), student, teacher, ids, slopes, normaliser=1).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        loss.backward()


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="chunk_mb=0: wanted a positive number"):
        LinearLoss(chunk_mb=0)
