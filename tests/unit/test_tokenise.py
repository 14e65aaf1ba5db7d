"""Ids of batches: the tokenizer's own, in order, from any number of processes."""

import os
import random

import pytest
from tokenizers import processors

from minillm.common.errors import DataError
from minillm.data import tokenise
from minillm.data.tokenise import batches, encode_all, usable_cores
from minillm.data.worker import encode, portable
from tests.conftest import WORDS
from tests.tokenizers import byte_level, slow


class SlowTokenizer:
    """As a transformers tokenizer without a serialised core: called, not sent as JSON."""

    unk_token = None
    is_fast, all_special_ids, unk_token_id = False, [], None

    def __call__(self, texts, *, add_special_tokens, verbose):
        assert not add_special_tokens and not verbose
        return {"input_ids": [[WORDS.index(word) for word in text.split()] for text in texts]}


@pytest.fixture
def pieces():
    draw = random.Random(2)
    return [(" ".join(draw.choices(WORDS, k=draw.randint(1, 30))), draw.random() < 0.7) for _ in range(300)]


def own_ids(tokenizer, pieces):
    """The tokenizer as a user calls it, piece by piece."""
    out = []
    for text, last in pieces:
        out += tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * last
    return out


def test_ids_are_those_of_the_tokenizer_whatever_its_own_settings(tokenizer, pieces):
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
    ids = encode(portable(tokenizer), 0, pieces).tolist()
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3  # the tokenizer itself is left as it was
    assert ids == own_ids(tokenizer, pieces)


@pytest.mark.parametrize("make", [byte_level, slow])
def test_control_tokens_in_a_document_stay_text(make):
    tokenizer = make()
    text = f"a{tokenizer.eos_token}b <think>\n"
    ids = encode(portable(tokenizer), tokenizer.eos_token_id, [(text, True), ("<think>", True)]).tolist()
    think, eos = tokenizer.convert_tokens_to_ids("<think>"), tokenizer.eos_token_id
    assert ids.count(eos) == 2 and ids[-2:] == [think, eos]
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text + "<think>"


def test_a_slow_tokenizer_is_called(pieces):
    ids = encode(portable(SlowTokenizer()), 99, pieces[:5]).tolist()
    assert [i for i in ids if i != 99] == [WORDS.index(word) for text, _ in pieces[:5] for word in text.split()]


def test_batches_hold_about_as_many_characters_each(monkeypatch, pieces):
    monkeypatch.setattr(tokenise, "BATCH", 500)
    made = list(batches(pieces))
    assert [piece for batch in made for piece in batch] == pieces
    sizes = [sum(len(text) for text, _ in batch) for batch in made]
    assert min(sizes[:-1]) >= 500 and max(sizes) < 500 + max(len(text) for text, _ in pieces)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_in_the_same_order(monkeypatch, tokenizer, pieces, workers):
    monkeypatch.setattr(tokenise, "BATCH", 500)
    stream = list(batches(pieces))
    made = list(encode_all(portable(tokenizer), 0, stream, workers))
    assert [batch for batch, _ in made] == stream
    assert [i for _, ids in made for i in ids.tolist()] == own_ids(tokenizer, pieces)


def test_a_long_stream_is_read_only_as_far_as_needed_and_processes_end(monkeypatch, tokenizer, pieces):
    started = []
    start = tokenise._Processes._start
    monkeypatch.setattr(tokenise._Processes, "_start", lambda self: started.append(start(self)) or started[-1])
    read = []

    def endless():
        while True:
            read.append(1)
            yield pieces[:3]

    stream = encode_all(portable(tokenizer), 0, endless(), 2)
    for _ in range(10):
        next(stream)
    assert len(read) <= 10 + 2 * 2
    stream.close()
    assert 1 <= len(started) <= 2 and all(process.returncode is not None for process in started)


def test_a_process_that_ends_is_an_error_not_a_hang(monkeypatch, tokenizer, pieces):
    start = tokenise._Processes._start

    def killed(self):
        process = start(self)
        process.kill()
        return process

    monkeypatch.setattr(tokenise._Processes, "_start", killed)
    with pytest.raises(DataError, match=r"ended \(status -9\).*lower data.workers"):
        list(encode_all(portable(tokenizer), 0, [pieces, pieces, pieces], 2))


def test_a_worker_ends_when_its_parent_is_gone(tokenizer):
    processes = tokenise._Processes(portable(tokenizer), 0, 1)
    processes.submit([("cat", True)]).result()
    process = processes._started[0]
    process.stdin.close()  # as the kernel does it for a parent that was killed
    assert process.wait(timeout=10) == 0
    processes.close()


def test_usable_cores_are_those_of_the_affinity():
    assert 1 <= usable_cores() <= os.cpu_count()
