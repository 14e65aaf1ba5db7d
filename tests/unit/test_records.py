"""What can be read, and that an error names file, line and key."""

import json
import re
from pathlib import Path

import datasets
import pytest

from minillm.common.errors import DataError
from minillm.data import read_documents, read_records


def write(tmp_path, *rows):
    file = tmp_path / "data.jsonl"
    file.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(file)


def test_the_minillm_schema(tmp_path):
    file = write(
        tmp_path,
        {"instruction": " a ", "input": "b", "output": ["c", "d"], "topic": "x"},
        {"instruction": "e", "output": "f"},
    )
    one, two = read_records(file)
    assert (one.id, one.instruction, one.input, one.references, one.question) == (
        f"{file}:1",
        " a ",
        "b",
        ("c", "d"),
        " a \n\nb",
    )
    assert (two.input, two.references, two.question) == ("", ("f",), "e")
    assert one.conversation == one.question


def test_chat_messages(tmp_path):
    turns = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    with_answer, without = read_records(write(tmp_path, {"messages": messages}, {"messages": messages[:-1]}))
    assert with_answer.instruction == without.instruction == "u2"
    assert with_answer.references == ("a2",) and without.references == ()
    assert with_answer.history == tuple(turns[:3])
    assert without.conversation == "system: s\n\nuser: u1\n\nassistant: a1\n\nuser: u2"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("{broken", "data.jsonl:2: not JSON"),
        ({"instruction": "  "}, "data.jsonl:2: key instruction is empty"),
        ({"input": "x"}, "data.jsonl:2: key instruction (or messages) is missing; got input"),
        ({"instruction": 3}, "data.jsonl:2: key instruction: wanted text, got int"),
        ([1], "data.jsonl:2: wanted a JSON object, got list"),
        ({"instruction": "a", "output": 5}, "data.jsonl:2: key output: wanted text, got int"),
        ({"instruction": "a", "output": {"k": "v"}}, "data.jsonl:2: key output: wanted text, got dict"),
        ({"instruction": "a", "input": 0}, "data.jsonl:2: key input: wanted text, got int"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "data.jsonl:2: key messages: wanted a last user turn"),
        (
            {"messages": [{"role": "human", "content": "x"}, {"role": ["gpt"], "content": "y"}]},
            "data.jsonl:2: key messages: role 'human', ['gpt']: wanted one of system, developer, user, assistant, tool",
        ),
        (
            {"instruction": "a \ud83d"},
            "data.jsonl:2: key instruction: not Unicode (surrogates not allowed at char",
        ),
        ({"instruction": "a", "input": "\ud83d"}, "data.jsonl:2: key input: not Unicode"),
        ({"instruction": "a", "output": ["b", "\ud83d"]}, "data.jsonl:2: key output: not Unicode"),
        ({"messages": [{"role": "user", "content": "\ude00"}]}, "data.jsonl:2: key messages.content: not Unicode"),
        ({"messages": [{"role": "user"}]}, "data.jsonl:2: key messages: wanted a list of objects"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, text):
    with pytest.raises(DataError) as caught:
        read_records(write(tmp_path, {"instruction": "fine"}, row))
    assert text in str(caught.value) and "1 unusable rows" in str(caught.value)


def test_many_bad_rows_come_in_one_message(tmp_path):
    with pytest.raises(DataError, match="12 unusable rows") as caught:
        read_records(write(tmp_path, *[{"input": "x"}] * 12))
    assert "data.jsonl:10:" in str(caught.value) and "and 2 more" in str(caught.value)


GOOD = b'{"instruction": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "empty.jsonl",
            b"",
            "no records; wanted at least one JSON object a line with the key instruction (with output",
        ),
        ("missing.jsonl", None, "cannot be read (No such file or directory)"),
        ("latin.jsonl", GOOD + b'{"instruction": "caf\xe9"}\n', "latin.jsonl:2: not UTF-8 (byte 0xe9 at place 21)"),
        ("wide.jsonl", GOOD.decode().encode("utf-16"), "wide.jsonl:1: not UTF-8 (byte 0xff at place 1)"),
        (
            "cut.jsonl",
            GOOD + b'{"instruction": "a',
            "cut.jsonl:2: not JSON (the line ends inside the object: was the fi",
        ),
        (
            "table.jsonl",
            b"instruction,output\na,b\n",
            "table.jsonl:1: not JSON (text or CSV, or an object that goes over",
        ),
        ("array.jsonl", b"[\n" + GOOD + b"]\n", "array.jsonl:1: not JSON (a JSON array; write its objects one a line"),
        ("no.parquet", GOOD, "no.parquet: cannot be read (Parquet magic bytes not found"),
    ],
)
def test_a_file_of_another_kind_says_what_is_wanted(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(text)):
        read_records(str(tmp_path / name))


def test_parquet_holds_prompts_and_corpora(tmp_path):
    rows = [{"instruction": "a", "input": None, "output": "b", "text": "c"}, {"instruction": "d", "text": "e"}]
    datasets.Dataset.from_list(rows).to_parquet(file := str(tmp_path / "data.parquet"))
    first, second = read_records(file)
    assert (first.instruction, first.input, first.references) == ("a", "", ("b",))
    assert (second.id, second.references) == (f"{file}:2", ())
    assert list(read_documents(file).pieces()) == [("c", True), ("e", True)]
    datasets.Dataset.from_list([{"prompt": "a"}]).to_parquet(file)
    with pytest.raises(DataError, match=r"data.parquet:1: key instruction \(or messages\) is missing; got prompt"):
        read_records(file)
    with pytest.raises(DataError, match="data.parquet:1: wanted one JSON object a line with the key text, got prompt"):
        read_documents(file)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_says_what_is_wanted(tmp_path, indent):
    (tmp_path / "data.json").write_text("\n" + json.dumps([{"instruction": "b"}], indent=indent))
    with pytest.raises(DataError, match="data.json: .* unusable rows; wanted one JSON object a line"):
        read_records(str(tmp_path / "data.json"))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name in ("data.jsonl", "text.txt"):
        (tmp_path / name).write_text('{"instruction": "a"}', encoding="utf-8-sig")
    assert read_records(str(tmp_path / "data.jsonl"))[0].instruction == "a"
    assert list(read_documents(str(tmp_path / "text.txt")).pieces()) == [('{"instruction": "a"}', True)]


def test_a_hub_data_set_with_dollys_columns(monkeypatch):
    rows = [{"instruction": "i", "context": "c", "response": "r", "category": "x"}]
    seen = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: seen.append((name, split)) or datasets.Dataset.from_list(rows)
    )
    (record,) = read_records("databricks/databricks-dolly-15k:train[:1]")
    assert (record.instruction, record.input, record.references) == ("i", "c", ("r",))
    assert seen == [("databricks/databricks-dolly-15k", "train[:1]")]


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    def fail(name, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"owner/set: cannot read this hub data set \(no network\).*give a .jsonl file"):
        read_records("owner/set")


def test_different_problems_come_in_one_message_and_blank_lines_count(tmp_path):
    file = write(tmp_path, {"instruction": "fine"}, "", "{broken", {"instruction": ""}, {"topic": "x", "input": "y"})
    with pytest.raises(DataError) as caught:
        read_records(file)
    assert str(caught.value).splitlines() == [
        f"{file}: 3 unusable rows; wanted one JSON object a line, with the key instruction (with output, and input if "
        "there is one) or messages:",
        f"  {file}:3: not JSON (Expecting property name enclosed in double quotes at column 2 (char 1)): {{broken",
        f"  {file}:4: key instruction is empty",
        f"  {file}:5: key instruction (or messages) is missing; got topic, input",
    ]


def test_empty_texts_are_no_references(tmp_path):
    rows = [{"instruction": "a", "output": output} for output in ("", ["", " b "], None)]
    assert [record.references for record in read_records(write(tmp_path, *rows))] == [(), (" b ",), ()]


def test_texts_are_kept_as_given_and_only_tested_for_being_empty(tmp_path):
    code, blank = "    b = a\n    return b\n", " \n"
    turns = [("system", "  s\n"), ("user", code), ("assistant", code)]
    rows = [
        {"instruction": code, "input": code, "output": [blank, code]},
        {"instruction": "a", "input": blank, "output": blank},
        {"messages": [{"role": role, "content": content} for role, content in turns]},
    ]
    given, empty, chat = read_records(write(tmp_path, *rows))
    assert (given.instruction, given.input, given.references) == (code, code, (code,))
    assert empty.references == () and empty.question == "a"
    assert (chat.history, chat.instruction, chat.references) == ((turns[0],), code, (code,))
    with pytest.raises(DataError, match="key messages: wanted a last user turn that is not empty"):
        read_records(write(tmp_path, {"messages": [{"role": "user", "content": blank}]}))


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000])
def test_json_that_python_cannot_read_is_named(tmp_path, value):
    for key in ("instruction", "text"):
        file = write(tmp_path, {key: "fine"}, f'{{"{key}": {value}')
        with pytest.raises(DataError, match="data.jsonl:2: not JSON"):
            read_records(file) if key == "instruction" else read_documents(file)


@pytest.mark.parametrize("depth", [500, 800, 900, 930, 960, 990])
def test_a_nested_value_is_refused_at_every_depth(tmp_path, depth):
    nested = "[" * depth + "]" * depth
    rows = ['{"messages": [{"role": %s, "content": "a"}]}', '{"instruction": "a", "truncated": %s}']
    with pytest.raises(DataError, match="2 unusable rows; .*\n.*data.jsonl:1: .*\n.*data.jsonl:2: "):
        read_records(write(tmp_path, *(row % nested for row in rows)))


def test_hub_rows_default_to_train_skip_nulls_and_are_numbered(monkeypatch):
    rows = [{"instruction": "i", "input": None, "context": "c", "output": None, "response": "r"}, {"instruction": None}]
    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: seen.append((name, split)) or rows[: len(seen)])
    (record,) = read_records("owner/set")
    assert (record.id, record.input, record.references) == ("owner/set:1", "c", ("r",))
    with pytest.raises(DataError, match="owner/set:2: key instruction"):
        read_records("owner/set")
    assert seen == [("owner/set", "train")] * 2


def test_a_path_is_never_asked_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "set").write_text('{"instruction": "here"}\n')
    assert read_records("owner/set")[0].instruction == "here"
    for source in ("owner/none.jsonl", "./none", "none", "a/b/none"):
        with pytest.raises(DataError, match="none(.jsonl)?: cannot be read"):
            read_records(source)


def test_the_builtin_files_are_disjoint_and_none_is_empty():
    keys, topics = {}, set()
    for source in ("builtin", "builtin:validation"):
        file = Path(read_records(source)[0].id.rpartition(":")[0])
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert all(row["instruction"].strip() for row in rows)
        keys[source] = {(row["instruction"].strip().lower(), row["input"].strip()) for row in rows}
        topics |= {row["topic"] for row in rows}
        assert len(keys[source]) == len(rows) == len(read_records(source))
    assert not keys["builtin"] & keys["builtin:validation"] and len(topics) == 20
    assert len(keys["builtin"]) >= 400 and len(keys["builtin:validation"]) >= 80


def test_a_row_may_say_that_its_answer_was_cut_off(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"instruction": "a", "output": "b", "truncated": True}, {"instruction": "a", "output": "b"},
            {"messages": turns, "truncated": True}]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [record.truncated for record in read_records(str(file))] == [True, False, True]
    file.write_text(json.dumps(rows[0] | {"truncated": "yes"}))
    with pytest.raises(DataError, match="rows.jsonl:1: key truncated: wanted true or false, got 'yes'"):
        read_records(str(file))
