"""The paper's prompts to the letter, and the tokenizer's chat template."""

import pytest

from minillm.data.records import Record
from minillm.data.templates import paper_prompt, prompt_encoder
from minillm.errors import ConfigError, DataError


def test_the_papers_template_with_and_without_input():
    assert paper_prompt(Record("x", "Add.", "1 2")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert paper_prompt(Record("x", "Add {a}.")) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {a}.\n\n### Response:\n"
    )


def test_the_papers_template_has_no_place_for_a_conversation():
    with pytest.raises(DataError, match="f:3: a conversation of several turns.*data.template=chat"):
        paper_prompt(Record("f:3", "more", history=(("user", "a"), ("assistant", "b"))))


def test_the_chat_template_with_system_prompt_and_history(tokenizer):
    def text(record, system=None):
        return tokenizer.decode(prompt_encoder(tokenizer, "chat", system, {})(record))

    assert text(Record("x", "a cat")) == "user a cat </s> assistant"
    assert text(Record("x", "a cat", "red"), system="be big") == "system <unk> big </s> user a cat red </s> assistant"
    past = Record("x", "dog", history=(("system", "cat"), ("user", "one"), ("assistant", "two")))
    assert text(past, system="big") == "system cat </s> user one </s> assistant two </s> user dog </s> assistant"


def test_template_arguments_are_passed(tokenizer):
    tokenizer.chat_template = "{{ 'cat' if thinking else 'dog' }}"
    assert tokenizer.decode(prompt_encoder(tokenizer, "chat", None, {"thinking": True})(Record("x", "a"))) == "cat"


def test_a_missing_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template; set data.template=paper"):
        prompt_encoder(tokenizer, "chat", None, {})
