"""Reading a corpus as a stream: what a document is, where long ones are cut, errors that name the line."""

import json
import random
from pydoc_data.topics import topics

import datasets
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from minillm.common.errors import DataError
from minillm.data.documents import PIECE, read_documents

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts(source) -> list[str]:
    """Whole documents, from their pieces."""
    out, held = [], ""
    for text, last in read_documents(str(source)).pieces():
        held += text
        if last:
            out.append(held)
            held = ""
    assert not held
    return out


def prose(n: int, seed: int = 0) -> str:
    """Words, numbers, punctuation and every kind of break."""
    draw = random.Random(seed)
    words = ["cat", "don't", "Größe", "x1", "2024", "12345", "(a", "b)", "end.", "--", "'s", "§"]
    breaks = [" "] * 20 + ["\n", "\n\n", "  ", "\n\n\n ", "\t", ".\n", ".\n\n", " \n"]
    return "".join(draw.choice(words) + draw.choice(breaks) for _ in range(n))


def test_a_missing_key_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(DataError, match="c.jsonl:2: .*key text, got txt"):
        read_documents(str(tmp_path / "c.jsonl"))
    for name in ("none.txt", "none.jsonl", "none"):
        with pytest.raises(DataError, match=f"{name}: cannot be read .*change"):
            read_documents(str(tmp_path / name))


def test_documents_of_white_space_are_left_out_and_other_keys_ignored(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": " \\n"}\n\n{"text": " a ", "url": 3}\n{"text": ""}\n')
    assert texts(tmp_path / "c.jsonl") == [" a "]
    (tmp_path / "c.txt").write_text(" \n" * PIECE)
    assert texts(tmp_path / "c.txt") == []


@pytest.mark.parametrize("line", ['{"text": 3}', '{"text": null}', '["text"]', '"text"'])
def test_a_line_without_text_is_named(tmp_path, line):
    (tmp_path / "c.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n')
    with pytest.raises(
        DataError, match="c.jsonl:3: (key text: wanted text|wanted one JSON object a line with the key text), got"
    ):
        read_documents(str(tmp_path / "c.jsonl"))


def test_a_broken_line_and_text_that_is_not_unicode_are_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text" 3}\n')
    with pytest.raises(DataError, match=r"c.jsonl:2: not JSON \(Expecting ':' delimiter at column 9"):
        read_documents(str(tmp_path / "c.jsonl"))
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": "ab\\ud800"}\n')
    with pytest.raises(DataError, match=r"c.jsonl:2: key text: not Unicode \(surrogates not allowed at character 2\)"):
        read_documents(str(tmp_path / "c.jsonl"))
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="c.txt: cannot be read .*change data.corpus_file"):
        read_documents(str(tmp_path / "c.txt"))


def test_pydoc_topics_are_all_topics_in_order_of_their_names():
    documents = texts("pydoc_topics")
    assert documents == [text for _, text in sorted(topics.items())] and len(documents) > 50
    assert sum(map(len, documents)) > 400_000


def test_a_directory_is_its_files_in_order_of_their_paths(tmp_path):
    for name, text in (("b.txt", "two"), ("a/z.jsonl", '{"text": "one"}\n'), ("c.json", '{"text": "three"}\n')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text("not a document")
    assert texts(tmp_path) == ["one", "two", "three"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no .txt, .jsonl or .parquet file inside; change data.corpus_file"):
        read_documents(str(tmp_path / "empty"))


def test_the_digest_is_of_content_order_and_kind(tmp_path):
    def digest(name, text):
        (tmp_path / name).write_text(text)
        return read_documents(str(tmp_path / name)).digest()

    line = '{"text": "cat"}\n'
    assert digest("a.txt", line) == digest("b.txt", line)
    assert len({digest("a.txt", line), digest("a.jsonl", line), digest("c.txt", line + " ")}) == 3
    (tmp_path / "one").mkdir()
    first, second = digest("one/1.txt", "cat"), digest("one/2.txt", "dog")
    both = read_documents(str(tmp_path / "one")).digest()
    digest("one/1.txt", "dog"), digest("one/2.txt", "cat")
    assert len({first, second, both, read_documents(str(tmp_path / "one")).digest()}) == 4


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl"])
def test_long_documents_come_in_pieces_and_nothing_is_lost(tmp_path, name):
    text = prose(60_000)
    (tmp_path / name).write_text(text if name == "c.txt" else json.dumps({"text": text}) + "\n")
    pieces = list(read_documents(str(tmp_path / name)).pieces())
    assert "".join(piece for piece, _ in pieces) == text and len(pieces) > 3
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(PIECE // 2 <= len(piece) <= PIECE for piece, last in pieces if not last)
    assert all(piece.startswith("\n\n") for piece, _ in pieces[1:])


def test_text_without_white_space_is_cut_all_the_same(tmp_path):
    (tmp_path / "c.txt").write_text("x" * (2 * PIECE + 5))
    assert [len(text) for text, _ in read_documents(str(tmp_path / "c.txt")).pieces()] == [PIECE, PIECE, 5]


@pytest.mark.parametrize(
    "splitter",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=False),  # GPT-2
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ],
    ids=["gpt2", "llama3"],
)
@pytest.mark.parametrize("paragraphs", [True, False])
def test_pieces_have_the_tokens_of_the_whole_document(tmp_path, monkeypatch, splitter, paragraphs):
    """Byte-level tokenizers, trained on the very text so that breaks and words would merge where they can."""
    monkeypatch.setattr("minillm.data.documents.PIECE", 60)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    text = prose(3_000) if paragraphs else prose(3_000).replace("\n", " ")
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text], trainer)
    (tmp_path / "c.txt").write_text(text)
    pieces = [piece for piece, _ in read_documents(str(tmp_path / "c.txt")).pieces()]
    assert len(pieces) > 100 and max(map(len, pieces)) <= 60
    assert [i for piece in pieces for i in tokenizer.encode(piece).ids] == tokenizer.encode(text).ids


def test_a_hub_data_set_is_read_and_named_by_its_fingerprint(monkeypatch):
    """`load_dataset` stands for the hub: there is none in tests."""
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": " "}, {"text": "b"}])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or rows)
    assert texts("owner/name:validation") == ["a", "b"] and asked == [("owner/name", "validation")]
    assert read_documents("owner/name").digest() == f"owner/name {rows._fingerprint}"
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": None}])
    with pytest.raises(DataError, match="^owner/name:2: key text: wanted text"):
        read_documents("owner/name")


def test_a_hub_that_is_not_there_is_said():
    with pytest.raises(DataError, match="^owner/name: cannot read this hub data set .*give a .jsonl file"):
        read_documents("owner/name")
