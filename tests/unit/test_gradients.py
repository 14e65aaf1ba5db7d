"""Gradients, losses and weights that are not all on one device, as with strategy.cpu_offload on a GPU; `meta` is the
second device here."""

import pytest
import torch
from lightning.pytorch import LightningModule

from minillm.parallel import Parallel, Sharded, clip_gradients, gradient_norm
from minillm.train.finite import all_finite


def parameter(device: str, *gradient: float) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.zeros(len(gradient), device=device))
    made.grad = torch.tensor(gradient, device=device)
    return made


@pytest.mark.parametrize("other", ["cpu", "meta"])
def test_a_verdict_over_values_of_two_devices(other):
    assert all_finite([torch.tensor(1.0, device=other), torch.tensor(2.0)]).device.type == other


def test_a_verdict_is_false_for_one_bad_value():
    assert all_finite([torch.tensor(1.0), torch.tensor(2.0)])
    assert not all_finite([torch.tensor(1.0), torch.tensor(float("nan"))])


def test_gradients_of_two_devices_are_clipped_each_where_it_is():
    here = parameter("cpu", 3.0, 4.0)
    clip_gradients([here, parameter("meta", 1.0)], 1.0, gradient_norm([here]))
    assert here.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-6)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("angles", torch.ones(2))


@pytest.mark.parametrize(("offload", "weights"), [(True, "cpu"), (False, "meta")])
def test_with_cpu_offload_only_buffers_go_to_the_device(offload, weights):
    strategy = Sharded(Parallel(kind="fsdp", devices=2, cpu_offload=offload))
    strategy.parallel_devices, strategy._model = [torch.device("meta")], Module()
    strategy.cluster_environment = type("Environment", (), {"local_rank": lambda self: 0})()
    strategy.model_to_device()
    assert strategy.model.weight.device.type == weights
    assert strategy.model.angles.device.type == strategy.model.device.type == "meta"
