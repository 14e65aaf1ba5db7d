"""The judge's settings, and its key, which is nowhere but in the request."""

import json
import logging
from dataclasses import asdict

import pytest

from minillm.common.checks import collect
from minillm.common.errors import ConfigError, JudgeError, MinillmError
from minillm.common.secret import secret_problems
from minillm.evaluation.judge.judge import Item
from tests.chat_server import KEY, Sent, failure, items, judges, reply, serving


@pytest.fixture
def make(tmp_path, monkeypatch):
    return judges(tmp_path, monkeypatch)


WRONG = [
    ("base_url: wanted", dict(base_url=None)),
    ("base_url: wanted", dict(base_url="localhost:8000/v1")),
    ("base_url: wanted", dict(base_url="ftp://host/v1")),
    ("base_url: wanted", dict(base_url="http://host/v1 x")),
    ("base_url: wanted", dict(base_url="http://host/v1/chat/completions")),
    ("base_url: wanted", dict(base_url=f"http://host/v1?key={'x' * 9}")),
    ("base_url: holds the value of JUDGE_API_KEY", dict(base_url=f"http://host/{KEY}")),
    ("model=''", dict(model="")),
    ("model: holds", dict(model=KEY)),
    ("options.user: holds", dict(options={"user": KEY})),
    ("options.stream", dict(options={"stream": True})),
    ("cache_dir: wanted", dict(cache_dir="")),
    ("cache_dir: holds", dict(cache_dir=f"/x/{KEY}")),
    ("timeout=0", dict(timeout=0)),
    ("retries=-1", dict(retries=-1)),
    ("deadline=0", dict(deadline=0)),
    ("asks=0", dict(asks=0)),
    ("concurrency=0", dict(concurrency=0)),
    ("give_up=0", dict(give_up=0)),
    ("key_variable: wanted the NAME", dict(key_variable=KEY)),
    ("key_variable=ABSENT_API_KEY: wanted the NAME", dict(key_variable="ABSENT_API_KEY")),
    ("key_variable=BAD_API_KEY: wanted the NAME", dict(key_variable="BAD_API_KEY")),
]


@pytest.mark.parametrize(("problem", "changes"), WRONG)
def test_wrong_settings_are_refused_without_showing_a_key(make, monkeypatch, problem, changes):
    monkeypatch.setenv("BAD_API_KEY", "two\nlines-of-it")
    with pytest.raises(ConfigError) as caught:
        make(**{"base_url": "http://host/v1", **changes})
    assert len(caught.value.problems) == 1 and problem in str(caught.value)
    assert KEY not in str(caught.value) and "xxx" not in str(caught.value) and "lines-of-it" not in str(caught.value)


@pytest.mark.usefixtures("make")  # the key is in the environment
def test_a_config_makes_one():
    node = {
        "_target_": "minillm.evaluation.judge.judge.Judge",
        "base_url": "http://host/v1",
        "model": "m",
        "cache_dir": "x",
    }
    node |= {"key_variable": "JUDGE_API_KEY", "options": {"seed": 1}, "timeout": 5}
    problems = []
    assert collect(problems, "judge", node).options == {"seed": 1} and not problems
    assert collect(problems, "judge", node | {"asks": 1.5}) is None and problems == [
        "judge.asks=1.5: wanted an integer"
    ]


def test_all_problems_come_at_once(make):
    with pytest.raises(ConfigError) as caught:
        make("here", model="", key_variable="ABSENT_API_KEY", timeout=0, asks=0)
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("name", ["hexadecimal", "ab12" * 8, "HOME", "MY KEY", ""])
def test_what_may_be_a_key_is_no_name_of_a_variable(make, name):
    """Only the value of a variable that secret_problems knows is looked for in configs."""
    with pytest.raises(ConfigError) as caught:
        make("http://host/v1", key_variable=name)
    assert not name or name not in str(caught.value)


def test_the_key_is_nowhere_but_in_the_request(make, tmp_path, capfd, caplog, monkeypatch):
    """An endpoint that repeats the key in whatever it says: errors, headers, replies, scores."""
    caplog.set_level(logging.DEBUG)
    echoes = [
        failure(500, f"you sent Bearer {KEY}", Retry_After="0"),
        reply(f"Your key is {KEY}"),
        reply(f"8 6\n{KEY}"),
    ]
    seen = []
    with serving(*echoes) as (server, url):
        judge = make(url)
        ratings = judge.rate(items())
        assert ratings.counts() | {"rated": 1, "malformed_replies": 1} == ratings.counts()
        assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
        for sent in (
            failure(401, f"wrong: {KEY}"),
            failure(400, KEY),
            Sent(body=KEY),
            Sent(302, KEY, {"Location": KEY}),
        ):
            server.otherwise = lambda body, sent=sent: sent
            try:
                seen.append(judge.rate([Item("x", "?", "a", "b")]))
            except MinillmError as error:
                chain = [error]
                while chain[-1].__cause__ or chain[-1].__context__:
                    chain.append(chain[-1].__cause__ or chain[-1].__context__)
                seen += [f"{each!r} {each}" for each in chain]
    seen += [repr(judge), str(judge), json.dumps(asdict(judge), default=str), repr(ratings)]
    assert not secret_problems({name: str(value) for name, value in asdict(judge).items()})
    captured = capfd.readouterr()
    seen += [captured.out, captured.err, caplog.text]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    seen += [file.read_text() + str(file) for file in files]
    assert not [text for text in map(str, seen) if KEY in text or "Secret7" in text]
    assert any("[key]" in str(text) for text in seen)


@pytest.mark.parametrize("echo", ["abc/def+ghi==", r"abc\/def+ghi==", "/?key=abc%2Fdef%2Bghi%3D%3D"])
def test_a_key_that_is_repeated_in_escapes_is_blotted_out(make, monkeypatch, echo):
    monkeypatch.setenv("JUDGE_API_KEY", "abc/def+ghi==")
    with serving(otherwise=lambda _: Sent(400, f'{{"error": "{echo}"}}')) as (_, url):
        (rating,) = make(url).rate(items()).items
    assert "[key]" in rating.problem and "abc" not in rating.problem


def test_the_key_does_not_follow_a_redirection(make):
    with serving() as (other, elsewhere):
        with (
            serving(Sent(307, headers={"Location": f"{elsewhere}/chat/completions"})) as (_, url),
            pytest.raises(JudgeError, match="final address"),
        ):
            make(url).rate(items())
        assert not other.requests
