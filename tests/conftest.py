"""What all tests share. It imports no torch: with -n the process that only hands out tests loads it too."""

from __future__ import annotations

import os
import signal
import threading

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A crash of native code shows where. Set from its start on, as here: Lightning undoes a later faulthandler.enable().
os.environ.setdefault("PYTHONFAULTHANDLER", "1")
# A job in the background of a script ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup
HANDLERS = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow what lies in integration/ or parity/ and is not `quick`, and of the cases of a test with `some(n)`
    all but n that are spread over them."""
    for item in items:
        if item.path.parent.name in ("integration", "parity") and not item.get_closest_marker("quick"):
            item.add_marker(pytest.mark.slow)
    cases: dict[str, list] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for each in cases.values():
        if mark := each[0].get_closest_marker("some"):
            quick = {number * len(each) // mark.args[0] for number in range(mark.args[0])}
            for number, item in enumerate(each):
                if number not in quick:
                    item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Nothing is left in the user's own cache, nor taken from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def signals():
    """A run in this process takes signals over until the process ends; the next test would not hear Ctrl-C."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def tokenizer():
    from tests.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def pair():
    from tests.tiny import make_pair

    return make_pair()


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hugging Face hub, with a token for it."""
    from huggingface_hub import constants

    from tests.hub_server import hub_server

    with hub_server() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


@pytest.fixture
def ranks(monkeypatch):
    """Three ranks as threads: what each sends is seen by all at a barrier."""
    import torch
    import torch.distributed as dist

    from minillm.parallel import Group
    from tests.helpers import on_threads

    size, meeting, box = 3, threading.Barrier(3), {}
    mine = threading.local()

    def exchange(value):
        box[mine.rank] = value
        meeting.wait()
        everyone = [box[rank] for rank in range(size)]
        meeting.wait()
        return everyone

    def all_gather_object(out, value, group=None):
        out[:] = exchange(value)

    def all_gather(out, tensor, group=None):
        for to, each in zip(out, exchange(tensor.clone()), strict=True):
            to.copy_(each)

    def all_reduce(tensor, group=None):
        tensor.copy_(torch.stack(exchange(tensor.clone())).sum(0))

    for function in (all_gather_object, all_gather, all_reduce):
        monkeypatch.setattr(dist, function.__name__, function)

    def run(work):
        def one(rank):
            mine.rank = rank
            return work(Group(rank, size))

        return on_threads(size, one)

    return run
