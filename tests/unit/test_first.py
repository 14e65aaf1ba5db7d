"""The first of several ranks does, the others learn how it went; here they are threads."""

import threading
import time

import pytest
import torch.distributed as dist

from minillm.common.errors import ConfigError, Interrupted
from minillm.parallel import FirstFailed, check_shared, first, on_first
from tests.helpers import on_threads

SIZE = 3


@pytest.fixture
def everywhere(monkeypatch):
    """Calls a function on each rank; what it gave or raised there."""
    mine, meeting, sent = threading.local(), threading.Barrier(SIZE), {}

    def exchange(value):
        sent[mine.rank] = value
        meeting.wait(timeout=20)
        everyone = [sent[rank] for rank in range(SIZE)]
        meeting.wait(timeout=20)
        return everyone

    def broadcast_object_list(box):
        box[:] = exchange(list(box))[0]

    def all_gather_object(out, value):
        out[:] = exchange(value)

    fakes = {
        "is_initialized": lambda: True,
        "get_world_size": lambda: SIZE,
        "get_rank": lambda: mine.rank,
        "broadcast_object_list": broadcast_object_list,
        "all_gather_object": all_gather_object,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(dist, name, fake)

    def run(work):
        def one(rank):
            mine.rank = rank
            return work(rank)

        return on_threads(SIZE, one)

    return run


def test_all_get_what_the_first_made(everywhere):
    called = []
    assert everywhere(lambda rank: on_first(lambda: called.append(rank) or "made")) == ["made"] * SIZE
    assert called == [0]


@pytest.mark.parametrize(("error", "status"), [(ConfigError("x"), 1), (Interrupted("SIGTERM"), 75), (KeyError("x"), 1)])
def test_an_error_of_the_first_ends_all_and_is_told_by_it(everywhere, error, status):
    def fail():
        raise error

    mine, *others = everywhere(lambda rank: on_first(fail))
    assert mine is error
    assert all(isinstance(each, FirstFailed) and each.status == status for each in others)


def test_alone_it_is_a_call():
    assert on_first(lambda: 5) == 5
    check_shared("nowhere")


def test_a_directory_that_is_not_there_yet_is_shared(everywhere, tmp_path):
    assert everywhere(lambda rank: check_shared(tmp_path / "a" / "b")) == [None] * SIZE
    assert not list(tmp_path.iterdir())


def test_a_directory_of_one_node_is_refused_on_all(everywhere, tmp_path, monkeypatch):
    monkeypatch.setattr(first, "_appears", lambda file: dist.get_rank() != 2)
    results = everywhere(lambda rank: check_shared(tmp_path))
    assert all(isinstance(each, ConfigError) and "process 2 does not see" in str(each) for each in results)
    assert not list(tmp_path.iterdir())


def test_a_file_may_appear_late(tmp_path, monkeypatch):
    threading.Timer(0.2, (tmp_path / "late").touch).start()
    assert first._appears(tmp_path / "late")
    monkeypatch.setattr(first, "_PATIENCE", 0.0)
    began = time.monotonic()
    assert not first._appears(tmp_path / "never") and time.monotonic() - began < 5
