"""The paper's prompts to the letter, and the tokenizer's chat template."""

import pytest

from minillm.data.records import Record
from minillm.data.templates import paper_prompt, prompt_encoder
from minillm.errors import ConfigError, DataError


def test_the_papers_template_with_and_without_input():
    assert paper_prompt(Record("x", "Add.", "1 2")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
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


class Recorder:
    """A tokenizer that writes down what it is asked."""

    chat_template = "there is one"

    def __init__(self):
        self.chats, self.texts = [], []

    def apply_chat_template(self, messages, **options):
        self.chats.append((messages, options))
        return "the whole prompt"

    def __call__(self, text, **options):
        self.texts.append((text, options))
        return {"input_ids": [4, 2]}


def test_the_papers_prompt_is_tokenised_without_special_tokens():
    recorder = Recorder()
    assert prompt_encoder(recorder, "paper", None, {})(Record("x", "Add.")) == [4, 2]
    assert recorder.texts == [(paper_prompt(Record("x", "Add.")), {"add_special_tokens": False})] and not recorder.chats


def test_the_chat_template_gets_messages_arguments_and_the_generation_prompt():
    recorder = Recorder()
    assert prompt_encoder(recorder, "chat", "s", {"enable_thinking": False})(Record("x", "i", "more")) == [4, 2]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "i\n\nmore"}]
    assert recorder.chats == [(messages, {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False})]
    assert recorder.texts == [("the whole prompt", {"add_special_tokens": False})]


def test_an_encoder_leaves_records_as_they_are():
    record = Record("x", "c", history=(("user", "a"), ("assistant", "b")))
    encode = prompt_encoder(recorder := Recorder(), "chat", "s", {})
    encode(record), encode(record)
    roles = [[turn["role"] for turn in messages] for messages, _ in recorder.chats]
    assert roles == [["system", "user", "assistant", "user"]] * 2


def test_the_papers_template_refuses_a_conversation_when_encoding(tokenizer):
    with pytest.raises(DataError, match="f:9: a conversation"):
        prompt_encoder(tokenizer, "paper", None, {})(Record("f:9", "more", history=(("system", "s"),)))
