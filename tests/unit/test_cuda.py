"""The same code on a GPU: a whole round, with the teacher's body away during updates."""

import pytest
import torch

from minillm.linear_loss import LinearLoss
from minillm.models import Pair
from minillm.modules import OnPolicy, OnPolicyDistillation, SupervisedStart
from minillm.objectives import MiniLLM, PretrainLoss
from minillm.optim import Optim
from minillm.sampling import Sampler
from minillm.types import TrainBatch
from tests.conftest import make_pair
from tests.helpers import PROMPTS, prompt_batch


def gradients(device: str) -> list[torch.Tensor]:
    pair = make_pair()
    pair.teacher.network.to(device)
    pair.teacher.offload = True
    pair = Pair(pair.student.to(device), pair.teacher, pair.tokenizer, pair.n_vocab, pair.stop_ids)
    regime = OnPolicy(rollouts=6, minibatch_size=6, inner_epochs=1, max_steps=1, microbatch_tokens=40)
    parts = (
        MiniLLM(),
        Sampler(alpha=0.3, max_new_tokens=12, batch_size=4),
        PretrainLoss(batch_size=4),
        LinearLoss(1e-3),
    )
    module = OnPolicyDistillation(pair, *parts, Optim(), regime, SupervisedStart(), seed=0)
    module.manual_backward = lambda loss: loss.backward()
    experience = module.objective.prepare(module.rollout(TrainBatch(prompt_batch(PROMPTS * 2).to(device))))
    with pair.teacher.body_away():
        at = {each.device.type for each in pair.teacher.body()}
        assert at == {"cpu"} and pair.teacher.head().weight_VH.device.type == device
        module._policy_gradients(experience)
    assert {each.device.type for each in pair.teacher.body()} == {device}
    return [each.grad.cpu() for each in pair.student.parameters()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: runs the round there and on the CPU")
def test_a_round_on_a_gpu_gives_the_gradients_of_the_cpu():
    for ours, theirs in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_the_same_round_on_the_cpu_has_gradients():
    assert all(torch.isfinite(each).all() and each.abs().max() > 0 for each in gradients("cpu"))
