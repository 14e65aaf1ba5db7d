"""The paper's prompts to the letter, and the tokenizer's chat template."""

from dataclasses import replace
from datetime import date

import pytest

from minillm.common.errors import ConfigError, DataError
from minillm.data import Sources, build_prompts
from minillm.data.records import Record
from minillm.data.templates import paper_prompt, prompt_encoder
from tests.tokenizers import byte_level, slow


def prompts_of(records, tokenizer, template, *, system=None, arguments=None, bos=None):
    encode = prompt_encoder(tokenizer, template, system, arguments or {}, bos=bos)
    sizes = dict(pad_id=0, n_vocab=400, max_prompt_tokens=900, max_response_tokens=90)
    return build_prompts(records, encode, tokenizer, **sizes)


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
        return tokenizer.decode(prompt_encoder(tokenizer, "chat", system, {})([record])[0])

    assert text(Record("x", "a cat")) == "user a cat </s> assistant"
    assert text(Record("x", "a cat", "red"), system="be big") == "system <unk> big </s> user a cat red </s> assistant"
    past = Record("x", "dog", history=(("system", "cat"), ("user", "one"), ("assistant", "two")))
    assert text(past, system="big") == "system cat </s> user one </s> assistant two </s> user dog </s> assistant"


def test_template_arguments_are_passed(tokenizer):
    tokenizer.chat_template = "{{ 'cat ' if thinking else 'dog ' }}{{ messages[0].content }}"
    assert (
        tokenizer.decode(prompt_encoder(tokenizer, "chat", None, {"thinking": True})([Record("x", "a")])[0]) == "cat a"
    )


def test_a_missing_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template; set data.template=paper"):
        prompt_encoder(tokenizer, "chat", None, {})


def test_the_papers_template_refuses_a_conversation_when_encoding(tokenizer):
    with pytest.raises(DataError, match="f:9: a conversation"):
        prompt_encoder(tokenizer, "paper", None, {})([Record("f:9", "more", history=(("system", "s"),))])


def test_an_encoder_leaves_records_as_they_are(tokenizer):
    record = Record("x", "cat", history=(("user", "a"), ("assistant", "dog")))
    encode = prompt_encoder(tokenizer, "chat", "big", {})
    assert encode([record]) == encode([record]) and record.history == (("user", "a"), ("assistant", "dog"))


def unknown_ends():
    """As GPT-2 and Qwen 2 have it: the token for what is unknown is the one that ends a text."""
    tokenizer = byte_level()
    tokenizer.unk_token = tokenizer.eos_token
    return tokenizer


def test_the_name_of_the_unknown_token_stays_text():
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    record = Record("x", "the <|endoftext|> token", references=("<|endoftext|>",))
    for template in ("paper", "chat"):
        made = prompts_of([record], tokenizer, template)
        assert tokenizer.unk_token_id not in (*made.prompt_ids[0], *made.reference_ids[0])
        assert "the <|endoftext|> token" in tokenizer.decode(made.prompt_ids[0])


@pytest.mark.parametrize("make", [byte_level, slow, unknown_ends])
def test_control_tokens_in_a_text_stay_text(make):
    tokenizer = make()
    eos, end = tokenizer.eos_token, tokenizer.eos_token_id
    question = f"What does {eos} mean?\n  {eos}{eos} <think>"
    turns = (("system", f"see {eos}"), ("user", eos), ("assistant", f"no{eos}"))
    record = Record("x", question, references=(f"    {eos} ends a turn.\n",), history=turns)
    for template, each, own in (("chat", record, 4), ("paper", replace(record, history=()), 0)):
        made = prompts_of([each], tokenizer, template)
        text = tokenizer.decode(made.prompt_ids[0])
        # What a template writes itself is a control token, what the record says is not.
        assert made.prompt_ids[0].count(end) == own and text.count(eos) == own + (6 if own else 3)
        assert question in text and made.reference_ids[0].count(end) == 1 and made.reference_ids[0][-1] == end
        assert tokenizer.decode(made.reference_ids[0][:-1], skip_special_tokens=True) == each.references[0]
    plain = Record("x", "<think> a", references=("<think> b",))  # added, but no control token
    think = tokenizer("<think>", add_special_tokens=False)["input_ids"]
    made = prompts_of([plain], tokenizer, "chat")
    assert len(think) == 1 and think[0] in made.prompt_ids[0] and think[0] in made.reference_ids[0]


def test_control_tokens_in_the_template_and_its_arguments_are_real():
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ start }}" + tokenizer.chat_template
    encode = prompt_encoder(tokenizer, "chat", None, {"start": "<|im_end|>"})
    assert encode([Record("x", "a <|im_end|>")])[0].count(tokenizer.eos_token_id) == 2


def test_a_record_whose_control_token_has_no_other_tokens_is_dropped(tokenizer):
    records = [Record("f:1", "cat"), Record("f:2", "cat </s>"), Record("f:3", "cat", references=("</s>",))]
    made = prompts_of(records, tokenizer, "chat")
    assert [record.id for record in made.records] == ["f:1"]
    reason = "a control token in the text that this tokenizer cannot encode as text, the first at f:2"
    assert dict(made.dropped) == {reason: 2}


ROLES = "{% for m in messages if m['role'] in ('user', 'assistant') %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
UNTHINKING = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'].split('</think>')[-1] | trim | tojson }}\n{% endfor %}"
)
CALLS = [("user", "Say 7"), ("assistant", "7"), ("tool", "7"), ("user", "Say 7")]


def conversation(id, turns):
    return Record(id, turns[-1][1], history=tuple(turns[:-1]))


def test_turns_that_the_template_leaves_out_drop_the_record(caplog):
    tokenizer = byte_level()
    tokenizer.chat_template = ROLES
    records = [
        Record("f:1", "a"),
        conversation("f:2", [("developer", "a"), ("user", "a")]),  # the same text is there in another turn
        conversation("f:3", CALLS),
        conversation("f:4", [("developer", "b"), ("user", "a")]),
        conversation("f:5", [("developer", " "), ("user", "a")]),  # nothing to lose
    ]
    with caplog.at_level("INFO", logger="minillm.data.prompts"):
        made = prompts_of(records, tokenizer, "chat")
    lost = "a turn that the chat template leaves out"
    assert dict(made.dropped) == {f"{lost} (developer), the first at f:2": 2, f"{lost} (tool), the first at f:3": 1}
    assert [record.id for record in made.records] == ["f:1", "f:5"]
    assert "leaves out (developer), the first at f:2" in caplog.text and "(tool), the first at f:3" in caplog.text
    with pytest.raises(DataError, match=r"f:2.*; change data.template, or the roles in the file"):
        prompts_of(records[1:4], tokenizer, "chat")
    with pytest.raises(ConfigError, match="data.system: the chat template leaves system turns out"):
        prompt_encoder(tokenizer, "chat", "Be brief.", {})


def test_a_template_may_change_a_turn():
    tokenizer = byte_level()
    tokenizer.chat_template = UNTHINKING
    turns = [("user", 'a "b"\n'), ("assistant", "<think>all of it</think>"), ("tool", "<7>\n"), ("user", "  c")]
    assert not prompts_of([conversation("f:1", turns)], tokenizer, "chat").dropped


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
BY_NAME = {"rag": STRICT, "tool_use": ROLES}


@pytest.mark.parametrize(
    ("template", "settings", "turns", "text"),
    [
        (STRICT, {}, 2, r"must alternate\); its turns: user, user; change the row, data.system"),
        (STRICT, {"system": "s"}, 1, "must alternate.*its turns: system, user"),
        ("{{ messages[0].content + 1 }}", {}, 1, 'not "int"'),
        ("{{ messages.0.content }}{{ a.b.c }}", {}, 1, "'a' is undefined"),
        ("{% if %}", {}, 1, "Expected an expression"),
        (ROLES, {"arguments": {"tokenize": True}}, 1, "data.template_arguments"),
        (BY_NAME, {}, 1, "multiple chat templates.*data.template_arguments"),
        (BY_NAME, {"arguments": {"chat_template": "rag"}}, 2, "must alternate"),
    ],
)
def test_a_template_that_raises_names_the_record(template, settings, turns, text):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    records = [Record("f:6", "b")] * (turns - 1) + [conversation("f:7", [("user", "b")] * turns)]
    with pytest.raises(DataError, match=f"f:7: the chat template raises an error.*{text}"):
        prompts_of(records, tokenizer, "chat", **settings)


def test_a_template_that_is_chosen_by_its_name():
    tokenizer = byte_level()
    tokenizer.chat_template = BY_NAME
    (ids,) = prompts_of([Record("x", "b")], tokenizer, "chat", arguments={"chat_template": "tool_use"}).prompt_ids
    assert tokenizer.decode(ids) == "user: b\n"


def test_the_date_of_a_template_is_the_one_given():
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y %H:%M') }}: {{ messages[0].content }}"

    def text(date):
        return tokenizer.decode(prompt_encoder(tokenizer, "chat", None, {}, date=date)([Record("x", "a")])[0])

    assert text("2024-02-29") == "29 Feb 2024 00:00: a" and text("2025-12-01") == "01 Dec 2025 00:00: a"
    assert text(None).startswith(f"{date.today():%d %b %Y}")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)  # still renders alone


@pytest.mark.parametrize(("bos", "front"), [(None, "<bos>"), (True, "<bos>"), (False, "")])
def test_the_papers_prompt_begins_as_the_tokenizer_begins_a_text(bos, front):
    tokenizer = byte_level(begins_with_bos=True)
    (ids,) = prompts_of([Record("x", "Add.")], tokenizer, "paper", bos=bos).prompt_ids
    assert tokenizer.decode(ids) == front + paper_prompt(Record("x", "Add."))
    assert Sources(bos=bos).front(tokenizer) == front


def test_a_tokenizer_that_begins_and_ends_otherwise(tokenizer):
    for each in (tokenizer, slow()):  # ByT5's own addition is at the end
        (ids,) = prompts_of([Record("x", "cat")], each, "paper").prompt_ids
        assert list(ids) == each(paper_prompt(Record("x", "cat")), add_special_tokens=False)["input_ids"]
        with pytest.raises(ConfigError, match="data.bos=true: this tokenizer has no bos token; set data.bos=null"):
            prompt_encoder(each, "paper", None, {}, bos=True)
