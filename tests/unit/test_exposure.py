"""ExAccErr against the sum over all answers of toys: tables of probabilities, one row a prefix.

Probabilities are quarters, so that a set of 4^T answers holds each exactly as often as it is likely.
"""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from minillm.common.errors import DataError, NonFiniteError
from minillm.data.prompts import pad
from minillm.evaluation.metrics import PrefixKL, exposure_curve

V, T, END = 3, 4, 0
ROWS = [(1, 1, 2), (1, 2, 1), (2, 1, 1)]  # quarters
PREFIXES = [prefix for n in range(T) for prefix in itertools.product(range(1, V), repeat=n)]
ANSWERS = [(*prefix, last) for prefix in PREFIXES for last in range(V) if last == END or len(prefix) == T - 1]


def table(seed):
    draw = torch.Generator().manual_seed(seed)
    return {prefix: ROWS[torch.randint(3, (), generator=draw)] for prefix in PREFIXES}


def chance(table, tokens):
    return math.prod((Fraction(table[tokens[:t]][token], 4) for t, token in enumerate(tokens)), start=Fraction(1))


def kl(teacher, student, prefix):
    """KL[p || q] at a prefix, nats."""
    return sum(p / 4 * math.log(p / q) for p, q in zip(teacher[prefix], student[prefix], strict=True))


def side(sampler, pairs):
    """All answers of each prompt, each as often as `sampler` (0 student, 1 teacher) gives it in 4^T draws."""
    answers, values, prompts = [], [], []
    for prompt, pair in enumerate(pairs):
        for answer in ANSWERS:
            copies = chance(pair[sampler], answer) * 4**T
            assert copies.denominator == 1
            for _ in range(int(copies)):
                answers.append(answer)
                values.append([kl(pair[1], pair[0], answer[:t]) for t in range(len(answer))])
                prompts.append(prompt)
    _, mask = pad(answers, 0, left=False)
    kls = torch.full(mask.shape, torch.nan, dtype=torch.float64)
    kls[mask] = torch.tensor([value for row in values for value in row], dtype=torch.float64)
    return PrefixKL(kls, mask, torch.tensor(prompts))


def mean_kl(sampler, pair, t):
    """E KL_t over answers that reach t, summed over their prefixes."""
    reach = {prefix: float(chance(pair[sampler], prefix)) for prefix in PREFIXES if len(prefix) == t - 1}
    return sum(weight * kl(pair[1], pair[0], prefix) for prefix, weight in reach.items()) / sum(reach.values())


PAIRS = [(table(1), table(21)), (table(41), table(61))]
SIDES = [side(sampler, PAIRS) for sampler in (0, 1)]


def test_all_answers_are_listed():
    assert all(sum(chance(each, answer) for answer in ANSWERS) == 1 for pair in PAIRS for each in pair)


def test_the_curve_is_that_of_all_answers():
    curve = exposure_curve(*SIDES)
    own, given = (
        [sum(mean_kl(sampler, pair, t) for pair in PAIRS) / len(PAIRS) for t in range(1, T + 1)] for sampler in (0, 1)
    )
    error, expected = (list(itertools.accumulate(each)) for each in (own, given))
    assert curve.student.mean == pytest.approx(own, abs=1e-12)
    assert curve.teacher.mean == pytest.approx(given, abs=1e-12)
    assert curve.student_error == pytest.approx(error, abs=1e-12)
    assert curve.teacher_error == pytest.approx(expected, abs=1e-12)
    excess = [100 * (r - e) / e for r, e in zip(error, expected, strict=True)]
    assert curve.excess == pytest.approx(excess, abs=1e-9) and min(map(abs, excess[1:])) > 1
    for each, sampler in ((curve.student, 0), (curve.teacher, 1)):
        reach = [
            sum(chance(pair[sampler], prefix) for pair in PAIRS for prefix in PREFIXES if len(prefix) == t)
            for t in range(T)
        ]
        assert each.alive == tuple(4**T * share for share in reach)


def test_the_first_token_is_measured_at_the_bare_prompt_where_both_agree():
    curve = exposure_curve(*SIDES)
    first = sum(kl(teacher, student, ()) for student, teacher in PAIRS) / len(PAIRS)
    assert curve.first_token == curve.student.mean[0] == pytest.approx(first, abs=1e-12) and first > 0.01
    assert curve.excess[0] == pytest.approx(0, abs=1e-9)


def one(lengths, value=1.0, prompts=None):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return PrefixKL(mask * value, mask, torch.tensor(prompts or [0] * len(lengths)))


def test_there_is_no_value_where_fewer_than_twenty_are_alive_on_either_side():
    curve = exposure_curve(one([3] * 20 + [2], 2.0), one([2] * 19 + [3, 1], 1.0))
    assert curve.excess == (100.0, 100.0, None)
    assert curve.student_error == (2.0, 4.0, 6.0) and curve.teacher_error == (1.0, 2.0, None)
    assert curve.student.alive == (21, 21, 20) and curve.teacher.alive == (21, 20, 1)


def test_the_curve_is_as_long_as_the_longer_side():
    curve = exposure_curve(one([4, 4]), one([1, 1]), min_alive=1)
    assert curve.excess == (0.0, None, None, None) and curve.teacher.alive == (2, 0, 0, 0)


def test_models_that_only_emit_the_end_token_and_models_that_never_stop():
    ends, never = one([1] * 20), one([50] * 20)
    assert exposure_curve(ends, ends).excess == (0.0,)
    assert exposure_curve(never, never).excess == (0.0,) * 50
    assert exposure_curve(ends, never).excess == (0.0,) + (None,) * 49


def test_a_student_equal_to_its_teacher_has_no_excess():
    curve = exposure_curve(one([2] * 20, 0.0), one([2] * 20, 1e-9))
    assert curve.excess == (None, None) and curve.student_error == (0.0, 0.0)
    assert (curve.low, curve.high) == ((None, None), (None, None))


def test_other_prompts_no_samples_and_infinite_values_are_refused():
    with pytest.raises(DataError, match="samples to 2 prompts by the student and 1 by the teacher"):
        exposure_curve(one([1, 1], prompts=[0, 1]), one([1, 1]))
    nothing = PrefixKL(torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="samples to 1 prompts by the student and 0 by"):
        exposure_curve(one([1]), nothing)
    with pytest.raises(NonFiniteError, match="answer 0, position 1: inf"):
        exposure_curve(one([2], torch.inf), one([2]))


def test_the_interval_draws_prompts_with_all_their_samples():
    student, teacher = (one([3, 3, 3, 2], prompts=[5, 5, 8, 8]) for _ in range(2))
    student.kl_BR[2:] *= 3.0  # prompt 8: KL 3 at its own prefixes
    curve = exposure_curve(student, teacher, min_alive=1, resamples=4000)
    # A quarter of the draws are prompt 5 twice, a quarter prompt 8 twice.
    assert curve.low == pytest.approx((0.0, 0.0, 0.0)) and curve.high == pytest.approx((200.0, 200.0, 200.0))
    assert curve.excess == (100.0, 100.0, 100.0)
    curve = exposure_curve(student, teacher, min_alive=4)
    assert curve.low[2] is None and curve.high[2] is None and curve.high[1] == pytest.approx(200.0)


def test_a_resample_without_a_prompt_alive_is_left_out():
    student, teacher = (one([2, 1], prompts=[0, 1]) for _ in range(2))
    student.kl_BR[0, 1] = 2.0
    curve = exposure_curve(student, teacher, min_alive=1, resamples=1000)
    assert curve.low == pytest.approx((0.0, 50.0)) and curve.high == pytest.approx((0.0, 50.0))
