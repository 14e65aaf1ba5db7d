"""Logits of half-type heads: no rounding after the product, neither in decoding nor in the loss."""

import pytest
import torch

from minillm.divergences import reverse_kl
from minillm.models import Head
from minillm.objectives import Objective
from minillm.objectives.chunked import Side
from minillm.objectives.linear_loss import LinearLoss
from tests.helpers import ROAD_NAMES, ROADS

HIDDEN = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)) * 3
WEIGHT = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(6)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_types_are_sums_in_float32(dtype, autocast):
    hidden, head = HIDDEN.to(dtype), Head(WEIGHT.to(dtype))
    right = (hidden.double() @ head.weight_VH.double().T).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for logits in (head(hidden), head.columns(hidden).T, head.ready()(hidden)):
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, right, rtol=0, atol=1e-4)


def test_rewards_of_a_half_type_have_no_noise_of_the_product():
    """Rounded to bfloat16, logits of this size put 0.05 nats of noise on each token's reward."""
    hidden, weight = HIDDEN.bfloat16(), WEIGHT.bfloat16()
    right = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, IDS[:, None]).squeeze(1).float()
    rounded = (hidden @ weight.T).float().log_softmax(-1).gather(1, IDS[:, None]).squeeze(1)
    ours = LinearLoss().logprobs(Side(hidden, Head(weight)), IDS)
    assert (ours - right).abs().max() < 1e-4 < 1e-2 < (rounded - right).abs().max()


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
def test_a_loss_under_autocast_is_that_of_float32_products(road):
    """On a CPU, where no product of half types gives float32."""

    def loss(autocast):
        hidden, weight = (each.clone().requires_grad_() for each in (HIDDEN, WEIGHT))
        teacher = Side(HIDDEN.flip(0).bfloat16(), Head(WEIGHT.bfloat16()))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = road(Total(), Side(hidden, Head(weight)), teacher, IDS, normaliser=1)
        output.loss.backward()
        return output.loss.detach(), hidden.grad, weight.grad

    for ours, right in zip(loss(True), loss(False), strict=True):
        torch.testing.assert_close(ours, right)


class Total(Objective):
    def token_loss(self, student_NV, teacher_NV, ids_N, constants):
        return reverse_kl(student_NV, teacher_NV) - student_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
