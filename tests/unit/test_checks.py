"""Config nodes against the constructors they name: keys, types, what is missing, all problems at once."""

import inspect
from typing import Any, Literal

import lightning
import pytest

from minillm.common.checks import FORBIDDEN_TRAINER, construct, describe, matches, node_problems, trainer_problem
from minillm.common.errors import ConfigError
from minillm.models import ModelPair, PrunedTeacher
from minillm.train.optim import Optim

OPTIM = "minillm.train.optim.Optim"
PAIR = "minillm.models.ModelPair"
PRUNED = "minillm.models.PrunedTeacher"
TRAINER = "lightning.Trainer"


def optim_problems(**settings):
    return node_problems({"_target_": OPTIM, **settings}, "optim")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"learning_rat": 1e-3}, "optim.learning_rat: no such key; did you mean learning_rate?"),
        ({"schedul": "linear"}, "optim.schedul: no such key; did you mean schedule?"),
        ({"learning_rate": "fast"}, "optim.learning_rate='fast': wanted a number"),
        ({"learning_rate": None}, "optim.learning_rate=None: wanted a number"),
        ({"learning_rate": True}, "optim.learning_rate=True: wanted a number"),
        ({"warmup_steps": 2.5}, "optim.warmup_steps=2.5: wanted an integer"),
        ({"warmup_steps": False}, "optim.warmup_steps=False: wanted an integer"),
        ({"grad_clip": "1"}, "optim.grad_clip='1': wanted a number or null"),
        ({"schedule": "cosin"}, "optim.schedule='cosin': wanted one of constant, linear, cosine"),
    ],
)
def test_a_wrong_key_or_type_is_one_problem(settings, problem):
    assert optim_problems(**settings) == [problem]


def test_a_right_node_has_no_problems_and_an_integer_serves_as_a_number():
    assert optim_problems(learning_rate=1, betas=[0, 0.5], grad_clip=None, warmup_steps=0, schedule="linear") == []


def test_all_problems_come_together_and_nothing_like_a_name_lists_the_choices():
    problems = optim_problems(zzz=1, warmup_steps="x", schedule=3)
    assert len(problems) == 3
    assert problems[0].startswith("optim.zzz: no such key; choose from: betas, eps, grad_clip, learning_rate")


def test_a_missing_argument_is_named_unless_the_build_supplies_it():
    missing = node_problems({"_target_": PAIR, "teacher": "t"}, "model")
    assert len(missing) == 1 and missing[0].startswith("model.student: missing; wanted ")
    assert node_problems({"_target_": PAIR, "teacher": "t"}, "model", supplied=("student",)) == []


def test_a_key_that_the_build_supplies_may_not_be_given():
    (problem,) = node_problems({"_target_": PAIR, "student": "s", "teacher": "t"}, "model", supplied=("teacher",))
    assert problem.startswith("model.teacher: no such key;")


def test_nodes_below_are_checked_under_their_own_path():
    node = {"_target_": PAIR, "student": {"_target_": PRUNED, "drop_layer": [1], "keep_layers": [1.5]}, "teacher": 3}
    problems = node_problems(node, "model")
    assert "model.student.drop_layer: no such key; did you mean drop_layers?" in problems
    assert "model.student.keep_layers=[1.5]: wanted a list of an integer or null" in problems
    assert any(problem.startswith("model.teacher=3: wanted ") for problem in problems) and len(problems) == 3


@pytest.mark.parametrize("node", [None, 3, "text", {}, {"learning_rat": 1}, {"_target_": None, "x": 1}])
def test_a_node_without_a_target_is_left_alone(node):
    assert node_problems(node, "optim") == []


@pytest.mark.parametrize("key", sorted(FORBIDDEN_TRAINER))
def test_a_refused_trainer_key_is_a_real_one_and_names_ours(key):
    assert key in inspect.signature(lightning.Trainer).parameters
    expected = f"trainer.{key}: the training loop is ours (manual optimisation); use {FORBIDDEN_TRAINER[key]}"
    assert trainer_problem(key) == expected


def test_other_trainer_keys_are_free_and_misspelt_ones_are_not():
    assert trainer_problem("precision") is None
    assert node_problems({"_target_": TRAINER, "precision": "32-true"}, "trainer") == []
    (problem,) = node_problems({"_target_": TRAINER, "precison": "32-true"}, "trainer")
    assert problem == "trainer.precison: no such key; did you mean precision?"


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, float, True), (1.0, float, True), (True, float, False), ("1", float, False),
        (1, int, True), (1.0, int, False), (True, int, False), (True, bool, True), (1, bool, False),
        (None, int | None, True), (None, int, False), ("a", str | None, True), (3, str | None, False),
        ("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False), (True, Literal[1], False),
        ([1, 2], list[int], True), ([1, True], list[int], False), (3, list[int], False), ("ab", list[str], False),
        ([0.9, 1], tuple[float, float], True), ({"a": 1}, dict[str, Any], True), ([1], dict[str, Any], False),
        ({}, dict, True), (object(), Any, True),
    ],
)  # fmt: skip
def test_plain_values_against_annotations(value, hint, fits):
    assert matches(value, hint) is fits


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"), (float, "a number"), (bool, "true or false"), (str, "text"), (dict[str, Any], "a mapping"),
        (int | None, "an integer or null"), (Literal["a", "b"], "one of a, b"), (list[str], "a list of text"),
        (PrunedTeacher, "PrunedTeacher"),
    ],
)  # fmt: skip
def test_types_in_words(hint, words):
    assert describe(hint) == words


def test_construct_builds_the_nodes_below_first_and_adds_what_is_supplied():
    node = {"_target_": PAIR, "student": {"_target_": PRUNED, "drop_layers": [1, 2]}}
    built = construct(node, teacher="somewhere")
    assert isinstance(built, ModelPair) and built.student == PrunedTeacher(drop_layers=[1, 2])
    assert built.teacher.source == "somewhere"
    assert construct({"_target_": OPTIM, "warmup_steps": 7}) == Optim(warmup_steps=7)


def test_construct_puts_the_path_below_before_a_wrong_value():
    node = {"_target_": PAIR, "student": {"_target_": PRUNED}, "teacher": "t"}
    with pytest.raises(ConfigError) as caught:
        construct(node)
    assert caught.value.problems == [
        "student.keep_layers=None, drop_layers=None: wanted exactly one of the two, with layer numbers from 0 in "
        "ascending order"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.such", "cannot be imported"),
        ("minillm.models.Chekpoint", "cannot be imported"),
        (3, "cannot be imported"),
        ("", "cannot be imported"),
        ("minillm.models", "wanted a class by its path"),
        ("minillm.models.Lora", "wanted Checkpoint or FromScratch or PrunedTeacher or text"),
    ],
)
def test_a_target_that_is_none_is_one_problem(name, said):
    node = {"_target_": PAIR, "student": {"_target_": name}, "teacher": "t"}
    (problem,) = node_problems(node, "model")
    assert problem.startswith("model.student._target_=") and said in problem
