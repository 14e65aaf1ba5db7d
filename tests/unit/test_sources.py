"""The checks of the group data: each rule alone, all of them together, and what is allowed."""

import pytest

from minillm.common.errors import ConfigError
from minillm.data.sources import Sources

CHAT_ONLY = "system/template_arguments: only the chat template takes them; set data.template=chat"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0: wanted a positive number"),
        ({"max_prompt_tokens": -3}, "max_prompt_tokens=-3: wanted a positive number"),
        ({"max_tokens": 256}, "max_tokens=256: wanted more than max_prompt_tokens=256, or null"),
        ({"max_response_tokens": 0}, "max_response_tokens=0: wanted a positive number"),
        ({"block_size": 1}, "block_size=1: wanted at least 2 tokens"),
        ({"val_size": 0}, "val_size=0: wanted a positive number"),
        ({"val_size": -1, "val_file": None}, "val_size=-1: wanted a positive number"),
        ({"val_file": None}, "val_size=null with val_file=null: wanted the number of training prompts to hold out"),
        ({"system": "Be brief."}, CHAT_ONLY),
        ({"system": ""}, CHAT_ONLY),
        ({"template_arguments": {"enable_thinking": False}}, CHAT_ONLY),
    ],
)
def test_each_wrong_value_is_one_problem(settings, problem):
    with pytest.raises(ConfigError) as caught:
        Sources(**settings)
    assert caught.value.problems == [problem]


def test_all_wrong_values_come_in_one_error():
    with pytest.raises(ConfigError) as caught:
        Sources(max_prompt_tokens=0, max_response_tokens=0, block_size=0, val_size=0, system="x")
    names = [problem.partition("=")[0].partition(":")[0] for problem in caught.value.problems]
    assert names == ["max_prompt_tokens", "max_response_tokens", "val_size", "block_size", "system/template_arguments"]
    assert str(caught.value).startswith("5 problems in the configuration:\n  - max_prompt_tokens=0")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_prompt_tokens": 1, "max_response_tokens": 1, "block_size": 2, "val_size": 1},
        {"val_file": None, "val_size": 1},
        {"corpus_file": None},
        {"template": "chat", "system": "Be brief.", "template_arguments": {"enable_thinking": False}},
    ],
)
def test_the_smallest_right_values_are_taken(settings):
    made = Sources(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


def test_every_source_has_its_own_template_arguments():
    first, second = Sources(), Sources()
    assert first.template_arguments == {} and first.template_arguments is not second.template_arguments
