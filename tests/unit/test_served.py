"""A served teacher gives what the same teacher gives in process; the server refuses what it cannot use."""

import socket
import threading
import time

import pytest
import requests
import torch
from safetensors.torch import save

import minillm
from minillm.common.errors import ConfigError, ModelError, Unanswered
from minillm.models import Checkpoint, LanguageModel, ModelPair, PrunedTeacher, pair_of
from minillm.models.served import Server, connect
from tests.families import family_model, multimodal
from tests.serving import serving
from tests.tiny import make_model, make_tokenizer

IDS = torch.arange(3 * 7).view(3, 7) % 31
PLACES = torch.tensor([20, 0, 3, 8, 9, 15])  # of all rows, in no order


def connected(*urls, patience=0.0):
    return connect(list(urls), patience, timeout=20.0)[0]


@pytest.fixture(scope="module")
def teacher():
    return LanguageModel(make_model(seed=2)).frozen()


@pytest.fixture(scope="module")
def url(teacher):
    with serving(teacher.network, max_tokens=30, max_length=10) as (url, _):
        yield url


@pytest.mark.parametrize("max_tokens", [30, 14, 7])
def test_states_and_head_are_those_of_the_teacher(teacher, url, max_tokens):
    with serving(teacher.network, max_tokens=max_tokens) as (other, _):
        for served in (connected(other), connected(other, url)):
            assert (served.states(IDS, PLACES) - teacher.states(IDS, PLACES)).abs().max() < 1e-12
            assert torch.equal(served.head().weight_VH, teacher.head().weight_VH)
        with pytest.raises(ModelError, match="scores answers and writes none; set sampler.alpha=0"):
            served.hidden(IDS)


def test_it_writes_no_answers_and_says_what_does(url):
    served, words = connect([url], 0.0, 20.0)
    pair = pair_of(make_model(seed=1), served, make_tokenizer(), words)
    with pytest.raises(ConfigError, match="of=teacher: the teacher is served elsewhere and scores answers only; give"):
        minillm.generate(pair, ["the cat"], of="teacher")


@pytest.mark.parametrize("family", ["gemma2", "granite", "phi", "multimodal"])
def test_heads_that_scale_cap_or_have_a_bias(family):
    network = multimodal().double() if family == "multimodal" else family_model(family, dtype=torch.float64)
    with serving(network) as (url, _):
        models = connected(url), LanguageModel(network).frozen()
        ours, theirs = (model.head(1.5)(model.states(IDS, PLACES)) for model in models)
    assert torch.equal(ours, theirs)


def states(ids=IDS, places=PLACES):
    return save({"ids_BS": ids, "state_N": places})


REFUSED = {
    "a body that cannot be read: wanted ids_BS and state_N as safetensors": b"garbage",
    "wanted ids_BS, int64 with 2 dimensions": states(IDS.float()),
    "neither empty": states(places=PLACES[:0]),
    "ids_BS from 11 to 31: wanted 0 to 30": states(IDS + 11),
    "state_N from 1 to 21: wanted 0 to 20": states(places=PLACES + 1),
    "rows of 21 tokens: wanted at most max_length=10": states(IDS.view(1, 21)),
    "42 tokens, 6 places: wanted at most max_tokens=30": states(IDS.repeat(2, 1)),
    "more than 66016 bytes: wanted at most max_tokens=30": b"0" * (2**16 + 1000),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(url, text):
    answer = requests.post(f"{url}/states", data=REFUSED[text], timeout=5)
    assert answer.status_code == (413 if "bytes" in text else 400)
    assert text in answer.text and answer.text.count("\n") == 1
    assert requests.get(f"{url}/nothing", timeout=5).status_code == 404  # it goes on


def test_the_password(teacher, monkeypatch):
    with serving(teacher.network, token="right") as (url, _):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer r\xefght"}):
            for method, path in (("GET", "/about"), ("GET", "/head"), ("POST", "/states")):
                assert requests.request(method, url + path, headers=header, timeout=5).status_code == 401
        with pytest.raises(ModelError, match="wrong password: wanted the server's MINILLM_SERVE_TOKEN"):
            connected(url)
        monkeypatch.setenv("MINILLM_SERVE_TOKEN", "right")
        connected(url)


def test_another_model_is_refused(teacher, url, monkeypatch):
    """Another vocabulary; beside the first one, and in its place; another version; no server of ours."""
    served, words = connect([url], 0.0, 20.0)
    words["cat"], words["dog"] = words["dog"], words["cat"]
    with pytest.raises(ModelError, match="do not share a vocabulary: 2 of the first 31 tokens differ"):
        pair_of(make_model(seed=1), served, make_tokenizer(), words)
    network = make_model(seed=2)
    network.config.rope_parameters["rope_theta"] = 20_000.0
    with serving(network) as (other, stop):
        with pytest.raises(ModelError, match=r"is minillm .* with the model \w+; wanted .* with the model \w+ of http"):
            connected(url, other)
        served = connected(other)
        stop()
        again = serving(teacher.network, port=int(other.rpartition(":")[2]))
        with again, pytest.raises(ModelError, match="serves another model than before"):
            served.states(IDS, PLACES)
    monkeypatch.setattr("minillm.models.served.MODEL", "another-header")
    with pytest.raises(ModelError, match="no server of minillm"):
        connected(url)
    monkeypatch.undo()
    monkeypatch.setattr(minillm, "__version__", "9.9")
    with pytest.raises(ModelError, match="wanted 9.9 with"):
        connected(url)


def test_a_server_that_comes_back_in_time_and_one_that_does_not(teacher):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unanswered, match="Timeout"):
        Server(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.0, timeout=0.1).ask("/states", states())
    with serving(teacher.network) as (url, stop):
        patient, hasty = connected(url, patience=20.0), connected(url, patience=0.6)
        stop()
    found = []
    asking = threading.Thread(target=lambda: found.append(patient.states(IDS, PLACES)))
    asking.start()
    began = time.monotonic()
    with pytest.raises(Unanswered, match=r"no answer in 0.6 s .ConnectionError.; .* resume=auto goes on") as caught:
        hasty.states(IDS, PLACES)
    assert time.monotonic() - began > 0.2 and caught.value.status == 75 and asking.is_alive()
    with pytest.raises(ModelError, match="start python -m minillm.serve"):
        connected(url)
    with serving(teacher.network, port=int(url.rpartition(":")[2])):
        asking.join()
    assert torch.equal(found[0], teacher.states(IDS, PLACES))


def test_wrong_settings():
    with pytest.raises(ConfigError, match="url='localhost:1': wanted http://HOST:PORT"):
        Checkpoint(url="localhost:1")
    with pytest.raises(ConfigError, match="(?s)offload, adapter with url: wanted null.* timeout=0.0: wanted seconds"):
        Checkpoint(url="http://a:1", offload=True, adapter="x", timeout=0.0)
    with pytest.raises(ConfigError, match="student.url: only a teacher can be served"):
        ModelPair("http://a:1", "a/b")
    with pytest.raises(ConfigError, match="teacher.url: the student is made of the teacher's weights"):
        ModelPair(PrunedTeacher([0]), "http://a:1")
