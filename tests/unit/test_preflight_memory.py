"""The page's memory is the planner's, for the models that are loaded."""

from types import SimpleNamespace

import pytest
import torch

from minillm.data import Sources
from minillm.models import ModelPair
from minillm.objectives import CrossEntropy, MiniLLM, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import Parallel
from minillm.planning import measure
from minillm.rollout import Sampler
from minillm.train.optim import Optim
from minillm.train.preview.memory import case_of, sizes_of
from minillm.train.regime import OnPolicy, Supervised
from tests.tiny import FAMILIES, make_pair

SAMPLER = Sampler(alpha=0.2, max_new_tokens=6, batch_size=8)
OPTIONS = dict(prompt=10, answer=6, half=False)


def settings(regime=None, **changes):
    regime = regime or OnPolicy(rollouts=8, minibatch_size=4, microbatch_tokens=48, max_steps=4)
    given = dict(
        model=ModelPair("s", "t"), regime=regime, objective=MiniLLM(), regulariser=PretrainLoss(coefficient=0.0),
        linear_loss=LinearLoss(), optim=Optim(), sampler=SAMPLER,
        data=Sources(max_prompt_tokens=10, max_response_tokens=6), strategy=Parallel(),
    )  # fmt: skip
    return SimpleNamespace(**given | changes)


def estimated(made, pair):
    return measure(case_of(made, *sizes_of(pair), **OPTIONS))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_told(family):
    pair, made = make_pair(family, dtype=torch.float32), settings()
    found = estimated(made, pair)
    weights = sum(each.nbytes for each in pair.student.parameters()) / 1e9
    for phase in (found.rollout, found.update):
        assert phase["student"] == phase["teacher"] == pytest.approx(weights)
    assert found.update["teacher's states"] == pytest.approx(8 * 6 * 32 * 4 / 1e9)
    assert found.total == max(sum(found.rollout.values()), sum(found.update.values()))


def test_fine_tuning_has_no_rollout():
    made = settings(Supervised(minibatch_size=4, microbatch_size=2), objective=CrossEntropy())
    pair = make_pair(dtype=torch.float32)
    alone = type(pair)(pair.student, None, pair.tokenizer, pair.n_vocab, pair.stop_ids)
    found = estimated(made, alone)
    assert found.rollout == {} and "teacher" not in found.update and found.update["gradients"] > 0


def test_a_quantised_teacher_counts_as_it_is_loaded():
    pair, made = make_pair(dtype=torch.float32), settings()
    whole = estimated(made, pair)
    pair.teacher.network.is_quantized = True
    for each in pair.teacher.network.model.layers.parameters():
        each.data = each.data.to(torch.int8)
    small = estimated(made, pair)
    size = sum(each.nbytes for each in pair.teacher.network.parameters()) / 1e9
    assert small.update["teacher"] == small.rollout["teacher"] == pytest.approx(size)
    assert size < 0.7 * whole.update["teacher"]


def test_nothing_is_drawn():
    pair, made = make_pair(dtype=torch.float32), settings()
    before = torch.get_rng_state()
    estimated(made, pair)
    assert torch.equal(before, torch.get_rng_state())
