"""What differs between two runs' settings, and whether it makes other numbers."""

import json

import pytest

from minillm.common.changes import LONGER, changes, flat

BEFORE = flat({
    "seed": 0, "run": {"name": "a"}, "resume": None, "optim": {"betas": [0.9, 0.95], "schedule": "constant"},
    "objective": {"denominator": "tokens"}, "strategy": {"kind": "single"},
    "regime": {"rollouts": 8, "minibatch_size": 4, "inner_epochs": 2, "max_steps": 8, "microbatch_tokens": 64,
               "microbatch_size": None},
})  # fmt: skip


def effects(now, before=BEFORE):
    return {each.key: each.effect for each in changes(before, now)}


def test_nothing_differs_from_itself_read_again():
    assert changes(BEFORE, json.loads(json.dumps(BEFORE))) == []


def test_an_absent_key_differs_and_a_change_can_be_read():
    without = {key: value for key, value in BEFORE.items() if key != "optim.betas"}
    (change,) = changes(BEFORE, without)
    assert change.effect is None and str(change) == "optim.betas was [0.9, 0.95], is 'absent' now"
    assert effects(BEFORE, without) == {"optim.betas": None}


@pytest.mark.parametrize(
    ("key", "value", "effect"),
    [
        ("seed", 1, None),
        ("run.name", "b", "the same numbers"),
        ("resume", "auto", "the same numbers"),
        ("strategy.kind", "fsdp", "other rounding"),
        ("regime.microbatch_tokens", 128, "other rounding"),
        ("regime.microbatch_size", 2, "other rounding"),
        ("regime.minibatch_size", 8, None),
        ("regime.max_steps", 16, LONGER),
        ("regime.max_steps", 4, None),
    ],
)
def test_effects(key, value, effect):
    assert effects(BEFORE | {key: value}) == {key: effect}


def test_what_is_rounding_elsewhere_is_the_objective_with_this_denominator():
    before = BEFORE | {"objective.denominator": "micro_batch"}
    changed = {"regime.microbatch_tokens": 128, "regime.microbatch_size": 2}
    assert effects(before | changed, before) == dict.fromkeys(changed)


@pytest.mark.parametrize("other", [{"optim.schedule": "linear"}, {"regime.max_steps": 6}])
def test_a_run_is_made_longer_only_where_its_beginning_stays_the_same(other):
    """Another schedule has other rates from the start; a rollout that was cut off is never made up for."""
    before = BEFORE | other
    assert effects(before | {"regime.max_steps": 16}, before) == {"regime.max_steps": None}
