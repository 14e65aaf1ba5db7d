"""Two-level draws against plain softmax and cumulative sums."""

import pytest
import torch

from minillm.rollout.draw import BLOCK, EDGE, Distribution, draw


def logits_of(n_vocab, rows=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_vocab, rows, dtype=dtype, generator=generator) * 3


@pytest.mark.parametrize("n_vocab", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_a_draw_is_the_first_token_beyond_u(n_vocab):
    student, teacher = logits_of(n_vocab), logits_of(n_vocab, seed=1)
    parts = [(Distribution(student), 0.7), (Distribution(teacher), 0.3)]
    cdf_VB = (0.7 * student.softmax(0) + 0.3 * teacher.softmax(0)).cumsum(0)
    for u in [0.0, 1e-9, 0.1, 0.25, 0.5, 0.77, 0.9, 0.999, 1 - 2**-53]:
        ids, _ = draw(parts, torch.full((3,), u, dtype=torch.float64))
        expected = (cdf_VB <= u).sum(0).clamp(max=n_vocab - 1)
        assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probabilities_are_those_of_softmax(dtype):
    logits = logits_of(700, dtype=dtype)
    logits[5] -= 500  # weight 0 in float32, but a finite log-probability
    ids = torch.tensor([5, 699, 0])
    got = Distribution(logits).logprobs(ids)
    torch.testing.assert_close(got, logits.log_softmax(0)[ids, torch.arange(3)], rtol=1e-6, atol=1e-6)
    assert got.dtype == dtype and got[0] < -400


@pytest.mark.parametrize("u", [0.0, 0.3, 0.49999, 0.5, 0.7, 1 - 2**-53])
@pytest.mark.parametrize("places", [(1, 3), (0, 300), (255, 256), (511, 599)])
def test_a_token_of_probability_zero_is_never_drawn(u, places):
    logits = torch.full((600, 1), -1e5)
    logits[list(places)] = 2.0
    (token,), _ = draw([(Distribution(logits), 1.0)], torch.tensor([u], dtype=torch.float64))
    assert token == places[int(u >= 0.5)]


def test_draws_near_an_edge_are_marked():
    logits = torch.zeros(4, 1, dtype=torch.float64)
    distribution = [(Distribution(logits), 1.0)]
    for u, near in [(0.25 - EDGE / 2, True), (0.25 + EDGE / 2, True), (0.25 + 2 * EDGE, False), (0.4, False)]:
        assert draw(distribution, torch.tensor([u], dtype=torch.float64))[1].item() == near


def test_extreme_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4 - 1]])
    ids, _ = draw([(Distribution(logits), 1.0)], torch.tensor([0.75, 0.5], dtype=torch.float64))
    assert ids.tolist() == [1, 0]
    assert torch.isfinite(Distribution(logits).logprobs(ids)).all()
