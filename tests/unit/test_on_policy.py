"""The update: invariant to padding and micro-batches, nothing to do for equal models, trained by the student only."""

from dataclasses import replace

import pytest
import torch

from minillm.common.errors import ConfigError
from minillm.common.types import TrainBatch
from minillm.models import LanguageModel, Pair
from minillm.objectives import MiniLLM, PretrainLoss
from minillm.rollout import Sampler, prepared
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.start import SupervisedStart
from tests.helpers import PROMPTS, ROAD_NAMES, ROADS, prompt_batch
from tests.tiny import make_model, make_pair

REFERENCE = dict(skip_current=False, gamma=0.95, reward_scaling=0.5, reward_clip=100.0, single_weight=False)


@pytest.fixture(autouse=True, params=ROADS, ids=ROAD_NAMES)
def road(request, monkeypatch):
    """Every test here runs on both roads to the loss."""
    monkeypatch.setattr(request.module, "ROAD", request.param)


ROAD = None


def module_of(
    pair, objective=None, kd_ratio=0.5, alpha=0.3, temperature=1.0, start=None, **sizes
) -> OnPolicyDistillation:
    module = OnPolicyDistillation(
        pair,
        objective or MiniLLM(),
        Sampler(alpha=alpha, temperature=temperature, max_new_tokens=6, batch_size=4),
        PretrainLoss(kd_ratio=kd_ratio, batch_size=4),
        ROAD,
        Optim(learning_rate=1e-3),
        OnPolicy(**dict(rollouts=6, minibatch_size=6, inner_epochs=1, max_steps=1) | sizes),
        start or SupervisedStart(),
        seed=0,
    )
    module.manual_backward = lambda loss: loss.backward()  # what a trainer on one device does
    return module


def gradients(module, extra=0, drifted=True):
    """Of one mini-batch and one corpus batch, with the student moved away from the one that sampled."""
    rollout = module.rollout(TrainBatch(prompt_batch(PROMPTS * 2, extra=extra)))
    experience = prepared(rollout, module.objective)
    if drifted:
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in module.student.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    metrics = module._policy_gradients(experience)
    corpus = torch.arange(1, 29).view(4, 7) % 31
    metrics |= module._corpus_gradients(corpus)
    return metrics, {name: p.grad.clone() for name, p in module.student.named_parameters()}


def assert_same(one, other):
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], rtol=0, atol=1e-10)
    for name in ("train/loss", "train/pretrain"):
        torch.testing.assert_close(one[0][name], other[0][name], rtol=0, atol=1e-10)


@pytest.mark.some(5)
@pytest.mark.parametrize(
    "objective", [MiniLLM(), MiniLLM(denominator="sequences"), MiniLLM(whitening="masked", **REFERENCE)]
)
@pytest.mark.parametrize("sizes", [dict(microbatch_size=1), dict(microbatch_size=4), dict(microbatch_tokens=25)])
def test_the_split_into_micro_batches_changes_neither_loss_nor_gradient(objective, sizes):
    assert_same(gradients(module_of(make_pair(), objective)), gradients(module_of(make_pair(), objective, **sizes)))


def test_the_micro_batch_denominator_does_depend_on_the_split():
    objective = MiniLLM(denominator="micro_batch")
    whole, split = (gradients(module_of(make_pair(), objective, microbatch_size=size)) for size in (8, 2))
    assert abs(whole[0]["train/loss"] - split[0]["train/loss"]) > 1e-6


def test_recomputed_teacher_states_change_neither_loss_nor_gradient():
    assert_same(gradients(module_of(make_pair())), gradients(module_of(make_pair(), teacher_states="recompute")))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_recompute_keeps_no_hidden_states(alpha):
    module = module_of(make_pair(), alpha=alpha, teacher_states="recompute")
    assert module.rollout(TrainBatch(prompt_batch(PROMPTS * 2))).teacher_hidden_BRH is None


def test_more_prompt_padding_changes_neither_loss_nor_gradient():
    assert_same(gradients(module_of(make_pair())), gradients(module_of(make_pair()), extra=5))


def test_whitening_over_all_cells_depends_on_padding_and_masked_does_not():
    module = module_of(make_pair())
    rollout = module.rollout(TrainBatch(prompt_batch(PROMPTS * 2)))
    wider = replace(
        rollout,
        **{
            name: torch.nn.functional.pad(getattr(rollout, name), (0, 3))
            for name in (
                "response_ids_BR",
                "response_mask_BR",
                "student_logprobs_BR",
                "teacher_logprobs_BR",
                "behaviour_logprobs_BR",
            )
        },
    )
    mask, width = rollout.response_mask_BR, rollout.response_mask_BR.shape[1]
    for whitening, same in (("all", False), ("masked", True)):
        one, two = (
            MiniLLM(whitening=whitening).prepare(each)["advantages"][:, :width][mask] for each in (rollout, wider)
        )
        assert torch.allclose(one, two, atol=1e-12) == same


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    network = make_model(seed=2)
    pair = Pair(network, LanguageModel(make_model(seed=2)).frozen(), make_pair().tokenizer, 31, (0,))
    module = module_of(pair)
    experience = prepared(module.rollout(TrainBatch(prompt_batch(PROMPTS * 2))), module.objective)
    metrics = module._policy_gradients(experience)
    assert abs(metrics["train/loss"]) < 1e-9
    assert max(p.grad.abs().max() for p in network.parameters() if p.grad is not None) < 1e-9


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_rollout_log_probs_are_those_of_the_update(temperature):
    """Right after sampling the ratio is 1: nothing is clipped and the long part is minus the mean advantage times w.
    The temperature applies to student, teacher, reward and mixture alike."""
    module = module_of(make_pair(), temperature=temperature)
    rollout = module.rollout(TrainBatch(prompt_batch(PROMPTS * 2)))
    experience = prepared(rollout, module.objective)
    metrics = module._policy_gradients(experience)
    mask = rollout.response_mask_BR
    a, w = (experience.constants[name][mask] for name in ("advantages", "long_weights"))
    expected = -torch.minimum(a * w, a * w.clamp(0.8, 1.2)).sum() / mask.sum()
    torch.testing.assert_close(metrics["train/long"], expected, rtol=0, atol=1e-9)
    assert metrics["train/clipped"].item() == pytest.approx(((w - 1).abs() > 0.2).double().mean().item(), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_float32_student_learns_from_a_bfloat16_teacher(alpha):
    """What dtype=auto makes on a GPU; log-probs, rewards and losses are computed in float32."""
    pair = make_pair(dtype=torch.float32)
    pair.teacher.network.to(torch.bfloat16)
    module = module_of(pair, alpha=alpha)
    experience = prepared(module.rollout(TrainBatch(prompt_batch(PROMPTS))), module.objective)
    assert experience.teacher_hidden_BRH.dtype == torch.bfloat16
    assert {experience.student_logprobs_BR.dtype, experience.teacher_logprobs_BR.dtype} == {torch.float32}
    assert torch.isfinite(module._policy_gradients(experience)["train/loss"])


def test_teacher_passes_are_counted_once_a_rollout():
    pair = make_pair()
    calls = []
    pair.teacher.network.base_model.register_forward_hook(lambda *args: calls.append(1))
    module = module_of(pair, alpha=0.0, kd_ratio=0.0)
    experience = prepared(module.rollout(TrainBatch(prompt_batch(PROMPTS))), module.objective)
    assert len(calls) == 1
    for _ in range(4):
        module._policy_gradients(experience)
    assert len(calls) == 1


def test_the_teacher_is_no_child_and_in_no_state_dict():
    module = module_of(make_pair())
    assert [name for name, _ in module.named_children()] == ["student"]
    assert all(name.startswith("student.") for name in module.state_dict())
    groups = module.configure_optimizers().param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.student.parameters()))


def test_the_start_learns_from_teacher_samples_with_soft_targets():
    pair = make_pair()
    module = module_of(pair, start=SupervisedStart(steps=1, minibatch_size=6))
    answers = module.start.answers(prompt_batch(PROMPTS * 2), pair, module.sampler, seed=0)
    assert answers.teacher_hidden_BRH is not None and answers.student_logprobs_BR is None
    again = module.start.answers(prompt_batch(PROMPTS * 2), pair, module.sampler, seed=0)
    assert torch.equal(answers.response_ids_BR, again.response_ids_BR)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="minibatch_size=12 does not divide rollouts=64"):
        OnPolicy(rollouts=64, minibatch_size=12)
    assert OnPolicy().steps_per_rollout == 16  # 256 / 64 x 4, the paper's
