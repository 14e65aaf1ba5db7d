"""Packing: documents with eos between, whole blocks, errors that name the line."""

import pytest
import torch

from minillm.data import build_corpus, rows_at
from minillm.data.corpus import read_documents
from minillm.errors import DataError


def test_documents_are_packed_with_eos_between(tmp_path, tokenizer):
    file = tmp_path / "c.jsonl"
    file.write_text('{"text": "cat dog"}\n{"text": "fish bird tree"}\n')
    blocks = build_corpus(str(file), tokenizer, block_size=3, n_vocab=31).blocks_NL
    assert [tokenizer.decode(block) for block in blocks] == ["cat dog </s>", "fish bird tree"]


def test_a_text_file_is_one_document_and_the_rest_of_a_block_is_left_out(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat dog fish bird")
    assert build_corpus(str(tmp_path / "c.txt"), tokenizer, block_size=4, n_vocab=31).blocks_NL.shape == (1, 4)


def test_a_corpus_that_fills_no_block_is_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat")
    with pytest.raises(DataError, match="2 tokens do not fill one block of 4.*regulariser=none"):
        build_corpus(str(tmp_path / "c.txt"), tokenizer, block_size=4, n_vocab=31)


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
    corpus = build_corpus(str(tmp_path / "c.txt"), tokenizer, block_size=5, n_vocab=31)
    assert torch.equal(corpus.batch(0, 3, 2), corpus.batch(0, 3, 2)) and corpus.batch(0, 3, 2).dtype == torch.int64
