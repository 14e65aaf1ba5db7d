"""What tells that a run goes wrong: overlap, entropies, KL by position, clipping by cause, warnings."""

import math

import pytest
import torch

from minillm import divergences
from minillm.common.types import Rollout
from minillm.models import LanguageModel, pair_of
from minillm.objectives import MiniLLM
from minillm.rollout import prepared, rollout_alignment
from minillm.train.callbacks.progress import Alarms
from minillm.train.figures import rollout_figures
from tests.helpers import ROADS, own_logits
from tests.tiny import make_model, make_pair, make_tokenizer
from tests.unit.test_preflight import gathered
from tests.unit.test_score import student_rollout


def test_overlap_and_entropy_by_hand():
    q, p = (torch.tensor(each, dtype=torch.float64).log() for each in ([0.5, 0.3, 0.15, 0.05], [0.1, 0.6, 0.1, 0.2]))
    share, mass = divergences.top_k_overlap(q, p, 2)  # the student's 0 and 1, the teacher's 1 and 3
    assert (share.item(), mass.item()) == pytest.approx((0.5, 0.3))
    assert [each.item() for each in divergences.top_k_overlap(q, q, 9)] == pytest.approx([1, 1])
    assert divergences.entropy(torch.full((8,), -math.log(8))).item() == pytest.approx(math.log(8))
    certain = torch.tensor([0.0, -math.inf])
    assert divergences.entropy(certain).item() == 0


@pytest.mark.parametrize("road", ROADS)
def test_alignment_is_that_of_full_passes(road):
    pair = make_pair()
    rollout = student_rollout(pair)
    found = rollout_alignment(LanguageModel(pair.student), pair.teacher, rollout, road, max_tokens=40)
    q, p = (own_logits(each, rollout).log_softmax(-1) for each in (pair.student, pair.teacher.network))
    top_q, top_p = (each.topk(16).indices.tolist() for each in (q, p))
    shared = [[token for token in mine if token in theirs] for mine, theirs in zip(top_q, top_p, strict=True)]
    wanted = {
        "reverse_kl": (q.exp() * (q - p)).sum(-1),
        "entropy": -(q.exp() * q).sum(-1),
        "teacher_entropy": -(p.exp() * p).sum(-1),
        "overlap": torch.tensor([len(each) / 16 for each in shared], dtype=q.dtype),
        "overlap_mass": torch.stack([row[each].exp().sum() for row, each in zip(q, shared, strict=True)]),
    }
    mask = rollout.response_mask_BR
    for name, value in wanted.items():
        torch.testing.assert_close(getattr(found, f"{name}_BR")[mask], value, rtol=0, atol=1e-9)
        assert (getattr(found, f"{name}_BR")[~mask] == 0).all()


def test_the_sampled_kl_by_position():
    mask = torch.arange(20) < torch.tensor([[20], [3]])
    gap = torch.arange(20.0).expand(2, 20)
    zeros = torch.zeros(2, 20)
    rollout = Rollout(
        mask.long(), mask, mask.long(), mask, gap, zeros, near_edge_BR=mask & False, behaviour_logprobs_BR=gap
    )
    found = rollout_figures(rollout, [1], 1.0)
    assert found["rollout/reverse_kl_sampled_from_1"] == pytest.approx((sum(range(16)) + 3) / 19)
    assert found["rollout/reverse_kl_sampled_from_17"] == pytest.approx(17.5)
    assert "rollout/reverse_kl_sampled_from_65" not in found
    assert found["time/tokens_per_second"] == 23
    assert rollout_figures(rollout, [1], 2.0, stored=[0])["time/tokens_per_second"] == 1.5  # that was not decoded


def test_clipping_by_the_mixtures_weight_is_told_apart():
    """At the first step nothing has moved: all that is clipped is clipped by the weight."""
    pair = make_pair()
    rollout = student_rollout(pair)
    shifted = rollout.student_logprobs_BR - 0.5 * (torch.arange(rollout.response_ids_BR.shape[1]) % 2)
    rollout = Rollout(**vars(rollout) | {"behaviour_logprobs_BR": shifted, "teacher_logprobs_BR": 2 * shifted})
    objective = MiniLLM(single_step=False, skip_current=False)
    constants = prepared(rollout, objective).constants
    mask, ids = rollout.response_mask_BR, rollout.response_ids_BR
    logq = own_logits(pair.student, rollout).log_softmax(-1)
    _, parts = objective.token_loss(logq, None, ids[mask], {name: each[mask] for name, each in constants.items()})
    odd = (torch.arange(ids.shape[1]) % 2 == 1).expand_as(mask)[mask]
    assert torch.equal(parts["clipped_by_weight"].bool(), odd) and torch.equal(parts["clipped"].bool(), odd)


def test_warnings_come_once():
    def told(lengths, cuts):
        alarms = Alarms()
        rounds = ({"rollout/length": n, "rollout/truncated": cut} for n, cut in zip(lengths, cuts, strict=True))
        return [text for each in rounds for text in alarms(each)]

    assert not told([50] * 30, [0.1] * 30) and not told([50] * 10 + [90] * 20, [0.1] * 30)
    (longer,) = told([50] * 10 + [90] * 20, [0.1] * 10 + [0.5] * 20)
    assert "length explosion" in longer
    (shorter,) = told([50] * 10 + [9] * 20, [0.1] * 30)
    assert "collapse" in shorter
    alarms = Alarms()
    assert [len(alarms({"optim/grad_norm": norm})) for norm in (1.0, 0.0, 0.0)] == [0, 1, 0]


def test_a_base_student_of_an_instruct_teacher_is_told():
    student, teacher = make_model(seed=1), make_model(seed=2)
    teacher.generation_config.eos_token_id = [0, 4]
    (text,) = gathered(pair_of(student, teacher, make_tokenizer(), make_tokenizer()))[0].warnings
    assert "The teacher also ends an answer with system, the student alone does not" in text
