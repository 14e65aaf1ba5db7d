"""Packing: documents with eos between, whole blocks, errors that name the line."""

import json
import random
from pydoc_data.topics import topics

import pytest
import torch

from minillm.data import build_corpus, rows_at
from minillm.data.corpus import Corpus, read_documents
from minillm.errors import DataError


def test_documents_are_packed_with_eos_between(tmp_path, tokenizer):
    file = tmp_path / "c.jsonl"
    file.write_text('{"text": "cat dog"}\n{"text": "fish bird tree"}\n')
    blocks = build_corpus(read_documents(str(file)), tokenizer, block_size=3, n_vocab=31).blocks_NL
    assert [tokenizer.decode(block) for block in blocks] == ["cat dog </s>", "fish bird tree"]


def test_a_text_file_is_one_document_and_the_rest_of_a_block_is_left_out(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat dog fish bird")
    assert build_corpus(
        read_documents(str(tmp_path / "c.txt")), tokenizer, block_size=4, n_vocab=31
    ).blocks_NL.shape == (1, 4)


def test_a_corpus_that_fills_no_block_is_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat")
    with pytest.raises(DataError, match="2 tokens do not fill one block of 4.*regulariser=none"):
        build_corpus(read_documents(str(tmp_path / "c.txt")), tokenizer, block_size=4, n_vocab=31)


def test_a_missing_key_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(DataError, match="c.jsonl:2: key text"):
        read_documents(str(tmp_path / "c.jsonl"))
    with pytest.raises(DataError, match="change data.corpus_file"):
        read_documents(str(tmp_path / "none.txt"))


def test_pythons_own_reference_is_there():
    assert sum(map(len, read_documents("pydoc_topics"))) > 400_000


def test_every_pass_has_each_row_once_in_an_order_of_its_own():
    first, second = rows_at(3, 0, 10, 10), rows_at(3, 10, 10, 10)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert rows_at(3, 7, 6, 10) == first[7:] + second[:3]  # a position, whatever the batch size
    assert rows_at(4, 0, 10, 10) != first


def test_corpus_batches_are_a_function_of_the_step(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text(" ".join(["cat dog fish bird tree"] * 8))
    corpus = build_corpus(read_documents(str(tmp_path / "c.txt")), tokenizer, block_size=5, n_vocab=31)
    assert torch.equal(corpus.batch(0, 3, 2), corpus.batch(0, 3, 2)) and corpus.batch(0, 3, 2).dtype == torch.int64


def test_packing_is_that_of_the_joined_words(tmp_path, tokenizer):
    draw = random.Random(1)
    documents = [" ".join(draw.choices(["cat", "dog", "fish", "one", "two"], k=draw.randint(1, 6))) for _ in range(12)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    words = "".join(f"{text} </s> " for text in documents).split()
    blocks = build_corpus(read_documents(str(tmp_path / "c.jsonl")), tokenizer, block_size=7, n_vocab=31).blocks_NL
    assert len(words) % 7 and blocks.shape == (len(words) // 7, 7) and blocks.dtype == torch.int32
    assert blocks.flatten().tolist() == tokenizer.convert_tokens_to_ids(words[: blocks.numel()])


def test_documents_of_white_space_are_left_out_and_other_keys_ignored(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": " \\n"}\n\n{"text": " a ", "url": 3}\n{"text": ""}\n')
    assert read_documents(str(tmp_path / "c.jsonl")) == [" a "]


@pytest.mark.parametrize("line", ['{"text": 3}', '{"text": null}', '["text"]', '"text"'])
def test_a_line_without_text_is_named(tmp_path, line):
    (tmp_path / "c.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n')
    with pytest.raises(DataError, match="c.jsonl:3: key text: wanted the document's text"):
        read_documents(str(tmp_path / "c.jsonl"))


def test_a_broken_line_and_a_file_that_is_not_utf8_are_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text" 3}\n')
    with pytest.raises(DataError, match=r"c.jsonl:2: not JSON \(Expecting ':' delimiter at column 9\)"):
        read_documents(str(tmp_path / "c.jsonl"))
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="c.txt: cannot be read .*change data.corpus_file to a text or .jsonl file"):
        read_documents(str(tmp_path / "c.txt"))


def test_an_empty_corpus_and_tokens_beyond_the_vocabulary_are_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(DataError, match="c.txt: 0 tokens do not fill one block of 2; .*smaller data.block_size"):
        build_corpus(read_documents(str(tmp_path / "c.txt")), tokenizer, block_size=2, n_vocab=31, source="c.txt")
    (tmp_path / "c.txt").write_text("cat two")  # two is the last of 31 words
    with pytest.raises(DataError, match="token 30 is outside the shared vocabulary of 30 rows"):
        build_corpus(read_documents(str(tmp_path / "c.txt")), tokenizer, block_size=2, n_vocab=30)


def test_pydoc_topics_are_all_topics_in_order_of_their_names():
    documents = read_documents("pydoc_topics")
    assert documents == [text for _, text in sorted(topics.items())] and len(documents) > 50


def test_steps_go_through_all_blocks_once_a_pass():
    corpus = Corpus(torch.arange(16, dtype=torch.int32).view(8, 2))
    firsts = torch.cat([corpus.batch(5, step, 3) for step in range(8)])[:, 0].tolist()  # 24 blocks: three passes
    passes = [firsts[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(each) == list(range(0, 16, 2)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
