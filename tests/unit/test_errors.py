"""Errors say all that is wrong at once and can be caught as what they are."""

import pytest

from minillm.common.errors import ConfigError, DataError, MinillmError, ModelError, NonFiniteError, check, nearest


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigError, ValueError),
        (DataError, ValueError),
        (ModelError, RuntimeError),
        (NonFiniteError, FloatingPointError),
    ],
)
def test_every_error_is_ours_and_a_builtin_one(error, builtin):
    with pytest.raises(MinillmError, match="^what went wrong$") as caught:
        raise error("what went wrong")
    assert isinstance(caught.value, builtin)


def test_one_problem_is_shown_plainly():
    error = ConfigError("gamma=1.5: wanted a number in [0, 1]")
    assert str(error) == "gamma=1.5: wanted a number in [0, 1]"
    assert error.problems == ["gamma=1.5: wanted a number in [0, 1]"]
    assert str(ConfigError(["alone"])) == "alone"


def test_several_problems_are_counted_and_listed():
    error = ConfigError(text for text in ("a=1: bad", "b=2: bad"))  # any iterable, read once
    assert str(error) == "2 problems in the configuration:\n  - a=1: bad\n  - b=2: bad"
    assert error.problems == ["a=1: bad", "b=2: bad"]


def test_the_group_is_put_before_every_problem():
    assert ConfigError(["a=1: bad", "b=2: bad"]).prefixed("optim") == ["optim.a=1: bad", "optim.b=2: bad"]
    assert ConfigError(ConfigError("x=0: bad").prefixed("student")).prefixed("model") == ["model.student.x=0: bad"]


def test_check_is_silent_where_every_rule_holds():
    check()
    check((True, "never shown"), (1 < 2, "neither"))


def test_check_reports_the_broken_rules_only_and_all_of_them():
    with pytest.raises(ConfigError) as caught:
        check((False, "first"), (True, "holds"), (False, "third"))
    assert caught.value.problems == ["first", "third"]


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("gama", "did you mean gamma?"),
        ("learning_rat", "did you mean learning_rate?"),
        ("zzz", "choose from: gamma, learning_rate, weight_decay"),
        ("", "choose from: gamma, learning_rate, weight_decay"),
    ],
)
def test_an_unknown_name_points_to_the_nearest_one_or_to_all_in_order(name, clause):
    assert nearest(name, {"weight_decay", "gamma", "learning_rate"}) == clause


def test_names_that_are_not_text_can_be_compared():
    assert nearest(12, [123, 7]) == "did you mean 123?"
