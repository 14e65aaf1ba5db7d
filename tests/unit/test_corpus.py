"""Packing against the plain way, and the cache: parallel, killed, shared, small in memory."""

import json
import os
import random
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import ByT5Tokenizer

from minillm.common.errors import DataError
from minillm.data import build_corpus, corpus, read_documents, rows_at
from minillm.data.corpus import Corpus
from tests.tiny import WORDS
from tests.tokenizers import byte_level, slow


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpus"


@pytest.fixture
def file(tmp_path):
    """Some 300 kB, in documents of 1 to 400 words."""
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 400))) for _ in range(400)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path / "c.jsonl"


def packed(texts, tokenizer, block_size) -> torch.Tensor:
    """The plain way, all in memory: what this package did before it had a cache."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    n_blocks = len(stream) // block_size
    return torch.tensor(stream[: n_blocks * block_size]).view(n_blocks, block_size)


def build(path, tokenizer, block_size=7, n_vocab=31) -> Corpus:
    return build_corpus(read_documents(str(path)), tokenizer, block_size=block_size, n_vocab=n_vocab)


def lines(file) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_documents_are_packed_with_eos_between(tmp_path, tokenizer):
    (tmp_path / "c.jsonl").write_text('{"text": "cat dog"}\n{"text": "fish bird tree"}\n')
    blocks = build(tmp_path / "c.jsonl", tokenizer, block_size=3).blocks_NL
    assert [tokenizer.decode(block) for block in blocks] == ["cat dog </s>", "fish bird tree"]


def test_a_text_file_is_one_document_and_the_rest_of_a_block_is_left_out(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat dog fish bird")
    assert build(tmp_path / "c.txt", tokenizer, block_size=4).blocks_NL.shape == (1, 4)


@pytest.mark.parametrize("n_vocab", [31, 2**16, 2**16 + 1])
def test_blocks_and_batches_are_those_of_the_plain_way(file, tokenizer, n_vocab):
    blocks = packed(lines(file), tokenizer, 7)
    made = build(file, tokenizer, n_vocab=n_vocab)
    assert isinstance(made.blocks_NL, np.memmap) and made.blocks_NL.dtype == ("<u2" if n_vocab <= 2**16 else "<i4")
    assert torch.equal(torch.from_numpy(made.blocks_NL.astype(np.int64)), blocks)
    for step in (0, 3, 10_000):
        assert torch.equal(made.batch(5, step, 4), blocks[rows_at(5, step * 4, 4, len(blocks))])
    assert made.batch(0, 0, 4).dtype == torch.int64


def test_a_tokenizer_in_python_works_too(file, monkeypatch):
    tokenizer = ByT5Tokenizer()
    made = build(file, tokenizer, n_vocab=len(tokenizer))
    blocks = packed(lines(file), tokenizer, 7)
    assert torch.equal(torch.from_numpy(made.blocks_NL.astype(np.int64)), blocks)
    monkeypatch.setattr(corpus, "_write", None)
    build(file, ByT5Tokenizer(), n_vocab=len(tokenizer))
    with pytest.raises(TypeError):  # another tokenizer is another cache
        build(file, ByT5Tokenizer(extra_ids=7), n_vocab=len(tokenizer))


def test_one_cache_serves_every_block_size_and_nothing_else(file, tokenizer, own_cache, monkeypatch):
    build(file, tokenizer)
    monkeypatch.setattr(corpus, "_write", None)  # from here on nothing may be tokenised
    assert torch.equal(
        torch.from_numpy(build(file, tokenizer, block_size=64).blocks_NL.astype(np.int64)),
        packed(lines(file), tokenizer, 64),
    )
    moved = file.rename(file.with_name("other.jsonl"))
    build(moved, tokenizer)
    monkeypatch.undo()
    monkeypatch.setenv("MINILLM_CACHE", str(own_cache.parent))
    assert len(list(own_cache.iterdir())) == 1
    build(moved, tokenizer, n_vocab=40)
    tokenizer.eos_token = "user"
    build(moved, tokenizer)
    tokenizer.add_tokens(["cat dog"])
    build(moved, tokenizer, n_vocab=40)
    moved.write_text(moved.read_text() + '{"text": "cat"}\n')
    build(moved, tokenizer, n_vocab=40)
    assert len(list(own_cache.iterdir())) == 5


def test_a_corpus_that_fills_no_block_is_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat")
    with pytest.raises(DataError, match="c.txt: 2 tokens do not fill one block of 4.*regulariser=none"):
        build(tmp_path / "c.txt", tokenizer, block_size=4)
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(DataError, match="c.txt: 0 tokens do not fill one block of 2; .*smaller data.block_size"):
        build(tmp_path / "c.txt", tokenizer, block_size=2)


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("cat two")  # two is the last of 31 words
    for _ in range(2):  # and not forgotten
        with pytest.raises(DataError, match="token 30 is outside the shared vocabulary of 30 rows"):
            build(tmp_path / "c.txt", tokenizer, block_size=2, n_vocab=30)


@pytest.mark.parametrize("make", [byte_level, slow])
def test_control_tokens_in_a_document_stay_text(tmp_path, make):
    tokenizer = make()
    (tmp_path / "c.txt").write_text(f"a{tokenizer.eos_token}b <think>\n" * 8_000)  # many pieces
    ids = build(tmp_path / "c.txt", tokenizer, 1, n_vocab=len(tokenizer)).blocks_NL[:, 0]
    assert (ids == tokenizer.eos_token_id).sum() == 1 and ids[-1] == tokenizer.eos_token_id
    if tokenizer.is_fast:  # others split all added tokens of a text that holds a control token
        assert (ids == tokenizer.convert_tokens_to_ids("<think>")).sum() == 8_000


def test_ids_are_those_of_the_tokenizer_whatever_its_own_settings(file, tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
    made = build(file, tokenizer)
    assert torch.equal(torch.from_numpy(made.blocks_NL.astype(np.int64)), packed(lines(file), tokenizer, 7))


# Waits with all text read, before anything is tokenised.
_CUT_OFF = """
    import sys, time
    from minillm.data import build_corpus, corpus, read_documents
    from tests.tiny import make_tokenizer

    def slow(*args):
        print("there", flush=True)
        time.sleep(60)

    corpus._write = slow
    build_corpus(read_documents(sys.argv[1]), make_tokenizer(), block_size=7, n_vocab=31)
"""


@pytest.mark.slow
def test_a_second_build_waits_for_the_first_and_takes_over_where_that_was_killed(file, tokenizer, monkeypatch):
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_CUT_OFF), str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    )
    assert first.stdout.readline() == "there\n"
    said, made = threading.Event(), []
    monkeypatch.setattr(corpus, "say", lambda text: said.set())
    second = threading.Thread(target=lambda: made.append(build(file, tokenizer)))
    second.start()
    assert said.wait(timeout=20)
    second.join(timeout=0.3)
    assert second.is_alive()  # a lock that is only talked about would be through by now
    first.kill()
    first.communicate()
    second.join(timeout=20)
    assert torch.equal(torch.from_numpy(made[0].blocks_NL.astype(np.int64)), packed(lines(file), tokenizer, 7))


@pytest.mark.parametrize("damage", ["short", "long", "gone"])
def test_a_damaged_cache_is_made_anew(file, tokenizer, damage):
    tokens = build(file, tokenizer).blocks_NL.filename
    right = tokens.read_bytes()
    if damage == "gone":
        tokens.unlink()
    else:
        tokens.write_bytes(right[:-2] if damage == "short" else right + b"\0\0")
    assert build(file, tokenizer).blocks_NL.filename.read_bytes() == right


def test_a_build_that_failed_leaves_nothing_in_the_way(file, tokenizer, own_cache, monkeypatch):
    monkeypatch.setattr("minillm.data.corpus.os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(DataError, match="no space"):
        build(file, tokenizer)
    monkeypatch.undo()
    monkeypatch.setenv("MINILLM_CACHE", str(own_cache.parent))
    tokens = build(file, tokenizer).blocks_NL.filename
    assert sorted(each.name for each in tokens.parent.iterdir()) == [tokens.name, "lock"]


def test_a_broken_line_far_down_is_named(file, tokenizer, monkeypatch):
    monkeypatch.setattr("minillm.data.documents._CHECKED", 100)
    file.write_text(file.read_text() + "{\n")
    with pytest.raises(DataError, match="c.jsonl:401: not JSON"):
        build(file, tokenizer)


def test_a_cache_that_cannot_be_written_is_said(file, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(file))
    with pytest.raises(DataError, match="cannot be written .*set MINILLM_CACHE to a directory that can"):
        build(file, tokenizer)


# Memory of its own: pages of mapped files are the system's, which takes them back.
_PEAK = """
    import re, sys, threading, time
    from pathlib import Path
    from minillm.data import build_corpus, read_documents
    from tests.tiny import make_tokenizer

    def own_kb():
        return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

    def watch():
        while True:
            seen.append(own_kb())
            time.sleep(0.002)

    tokenizer, seen, peaks = make_tokenizer(), [], []
    threading.Thread(target=watch, daemon=True).start()
    for file in sys.argv[1:]:
        seen.clear()
        made = build_corpus(read_documents(file), tokenizer, block_size=64, n_vocab=31)
        peaks.append(max(seen))
    print(peaks[1] - peaks[0], len(made.blocks_NL))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """One file of 12 MB, then one of 36 MB: the text alone would take more than is allowed."""
    text = " ".join(random.Random(0).choices(WORDS, k=250_000)) + "\n"
    sizes = {"small.txt": 12, "large.txt": 36}
    for name, times in sizes.items():
        (tmp_path / name).write_text(text * times)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PEAK), *(str(tmp_path / name) for name in sizes)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    grown_kb, n_blocks = map(int, done.stdout.split())
    assert n_blocks == (36 * 250_000 + 1) // 64 and grown_kb < 8_000


def test_steps_go_through_all_blocks_once_a_pass():
    made = Corpus(np.arange(16, dtype=np.int32).reshape(8, 2))
    firsts = torch.cat([made.batch(5, step, 3) for step in range(8)])[:, 0].tolist()  # 24 blocks: three passes
    passes = [firsts[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(each) == list(range(0, 16, 2)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
