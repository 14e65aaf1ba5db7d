"""The judge against a server on this machine that speaks the protocol: it counts, fails, stalls and talks nonsense."""

import gc
import json
import logging
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from minillm.checks import collect
from minillm.errors import ConfigError, DataError, JudgeError, MinillmError, StorageError
from minillm.metrics.judge import Item, Judge
from minillm.metrics.verdict import REMINDER
from minillm.secret import secret_problems
from tests.chat_server import Sent, failure, reply, serving

KEY = "sk-" + "Secret7" * 4


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def make(tmp_path):
    """A judge that is quick to give up."""
    quick = dict(key_variable="JUDGE_API_KEY", timeout=0.2, retries=2, backoff=0.01, longest_wait=1.0)

    def make(base_url: str, **changes) -> Judge:
        return Judge(**{"base_url": base_url, "model": "m", "cache_dir": tmp_path / "replies", **quick, **changes})

    return make


def items(n: int = 1) -> list[Item]:
    return [Item(f"id{i}", f"Question {i}?", f"reference {i}", f"answer {i}") for i in range(n)]


def scores_of(body: dict) -> Sent:
    """9 for what begins with "answer", 4 for a reference, wherever they stand."""
    first, second = (part.split("\n")[1] for part in body["messages"][0]["content"].split("[Response of ")[1:])
    return reply(" ".join("9" if text.startswith("answer") else "4" for text in (first, second)))


def test_scores_come_back_to_the_one_that_they_were_given_to(make):
    with serving(otherwise=scores_of) as (server, url):
        ratings = make(url + "/").rate(items(20))
    assert [(each.id, each.answer, each.reference) for each in ratings.items] == [(f"id{i}", 9, 4) for i in range(20)]
    assert ratings.ratio == pytest.approx(225) and ratings.counts()["asked"] == 20
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "m" and body["temperature"] == 0 and "stream" not in body
    first = [text.split("[Response of Assistant 1]\n")[1].startswith("answer") for text in server.texts]
    assert 4 <= sum(first) <= 16  # each stands first for some prompts


def test_the_place_of_an_answer_depends_on_the_prompt_alone(make):
    with serving() as (server, url):
        make(url, concurrency=1).rate([Item(f"{i}", "Why?", f"reference {i}", f"answer {i}") for i in range(8)])
    assert len({text.split("[Response of Assistant 1]\n")[1].split()[0] for text in server.texts}) == 1


def test_what_was_answered_is_not_asked_again(make):
    with serving(otherwise=scores_of) as (server, url):
        once = make(url).rate(items(5))
        again = make(url, timeout=1.0, key_variable=None).rate(items(7))
        assert len(server.requests) == 7 and "Authorization" not in server.requests[-1][1]
        assert again.counts() | {"items": 7, "rated": 7, "asked": 2, "from_cache": 5} == again.counts()
        assert again.scores[:5] == once.scores
        for changes in ({"model": "other"}, {"options": {"temperature": 0.5}}):
            assert make(url, **changes).rate(items(1)).counts()["asked"] == 1
        changed = [replace(items()[0], **{name: "x"}) for name in ("prompt", "reference", "answer")]
        assert [make(url).rate([item]).counts()["asked"] for item in changed] == [1, 1, 1]
    assert make(url).rate(items(7)).ratio == again.ratio  # with no server at all


def test_a_question_that_items_share_is_paid_for_once(make):
    twins = [replace(items()[0], id=name) for name in "abc"]
    with serving(otherwise=scores_of) as (server, url):
        ratings = make(url).rate(twins)
    assert len(server.requests) == 1 and ratings.scores == [(9, 4)] * 3
    assert ratings.counts()["asked"] == 1 and ratings.counts()["from_cache"] == 2


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_failure_that_passes_is_waited_for(make, status):
    with serving(failure(status), failure(status)) as (server, url):
        ratings = make(url).rate(items())
    assert ratings.items[0].outcome == "rated" and len(server.requests) == 3 and ratings.counts()["asked"] == 1


@pytest.mark.parametrize("headers", [{"Retry_After": "0.4"}, {"retry_after_ms": "400", "Retry_After": "9"}])
def test_retry_after_is_respected(make, headers):
    with serving(failure(429, **headers)) as (server, url):
        begin = time.monotonic()
        assert make(url).rate(items()).ratio
    assert 0.4 <= time.monotonic() - begin < 3 and len(server.requests) == 2


def test_retry_after_may_be_a_date_or_nonsense(make):
    with serving(failure(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), failure(503, Retry_After="soon")) as (
        _,
        url,
    ):
        assert make(url).rate(items()).ratio
    with serving(failure(429, Retry_After="Wed, 21 Oct 2093 07:28:00 GMT")) as (server, url):
        (rating,) = make(url).rate([Item("late", "?", "a", "b")]).items
    assert rating.outcome == "failed" and "more than longest_wait=1" in rating.problem and len(server.requests) == 1


def test_back_off_doubles_and_is_jittered(make, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds))
    endpoint = make("http://127.0.0.1:9/v1", retries=6, backoff=0.1)._endpoint()
    with pytest.raises(Exception, match="asked 7 times"):
        endpoint.chat({}, threading.Event())
    for wait, longest in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], strict=True):  # longest_wait is 1
        assert longest / 2 <= wait <= longest
    assert len({wait / longest for wait, longest in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], strict=True)}) == 6


@pytest.mark.parametrize(
    "sent",
    [
        replace(reply("8 6"), cut=0, stall=True),
        replace(reply("8 6"), cut=30, stall=True),
        replace(reply("8 6"), trickle=0.05),  # never 0.2 s without a byte
    ],
    ids=["silence", "half a body", "a trickle"],
)
def test_a_stall_ends_at_the_timeout_and_is_asked_again(make, sent):
    with serving(sent) as (server, url):
        begin = time.monotonic()
        ratings = make(url).rate(items())
        assert 0.2 <= time.monotonic() - begin < 2
    assert ratings.items[0].outcome == "rated" and len(server.requests) == 2


NONSENSE = {
    "html": Sent(body="<html>Welcome to the hotel's network</html>"),
    "empty": Sent(body=""),
    "cut JSON": Sent(body=reply("8 6").body[:-9]),
    "another shape": Sent(body='{"choices": [{"text": "8 6"}]}'),
    "no choice": Sent(body='{"choices": []}'),
    "a list": Sent(body="[8, 6]"),
    "an error with status 200": Sent(body='{"error": {"message": "overloaded", "code": 529}}'),
    "a number as content": Sent(body='{"choices": [{"message": {"content": 8}}]}'),
    "deep": Sent(body="[" * 100_000),
    "bare scores": Sent(body="8 6"),
    "hung up": replace(reply("8 6"), cut=10),
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
def test_a_body_that_is_no_chat_completion_is_asked_again_and_never_kept(make, sent):
    with serving(sent) as (server, url):
        assert make(url).rate(items()).counts()["rated"] == 1 and len(server.requests) == 2
    with serving(otherwise=lambda body: sent) as (server, url):
        ratings = make(url).rate([Item("b", "What?", "a", "b")])
        assert ratings.counts() | {"failed": 1, "asked": 0, "from_cache": 0} == ratings.counts()
        assert ratings.items[0].problem and ratings.ratio is None and len(server.requests) == 3
    with serving() as (server, url):
        assert make(url).rate([Item("b", "What?", "a", "b")]).counts()["asked"] == 1


def test_contents_in_parts_and_refusals_are_replies(make):
    parts = reply([{"type": "text", "text": "8 "}, {"type": "image"}, {"type": "text", "text": "6"}])
    refusal = Sent(body='{"choices": [{"message": {"content": null, "refusal": "I will not."}}]}')
    with serving(parts, refusal, reply(None), refusal) as (_, url):
        rated, refused = make(url, concurrency=1).rate(items(2)).items
    assert sorted([rated.answer, rated.reference]) == [6, 8]
    assert refused.outcome == "malformed" and refused.replies == ("I will not.", "", "I will not.")


def test_a_reply_without_scores_is_asked_again_with_a_reminder_and_counted(make):
    with serving(reply("Both are fine."), reply("11 6"), reply("7 4")) as (server, url):
        ratings = make(url).rate(items())
    (rating,) = ratings.items
    assert rating.outcome == "rated" and rating.replies == ("Both are fine.", "11 6", "7 4")
    assert ratings.counts() | {"asked": 3, "malformed": 0, "malformed_replies": 2} == ratings.counts()
    assert [text.endswith(REMINDER) for text in server.texts] == [False, True, True]


def test_malformed_replies_are_kept_and_not_paid_for_twice(make):
    with serving(otherwise=lambda body: reply("Both are fine.")) as (server, url):
        ratings = make(url, asks=2).rate(items(3))
        assert ratings.counts() | {"malformed": 3, "rated": 0, "asked": 6, "malformed_replies": 6} == ratings.counts()
        assert ratings.ratio is None and ratings.items[2].replies == ("Both are fine.",) * 2
        again = make(url, asks=2).rate(items(3))
        assert again.counts() | {"malformed": 3, "asked": 0, "from_cache": 3} == again.counts()
        assert make(url, asks=3).rate(items(3)).counts()["asked"] == 3  # one more each
    assert len(server.requests) == 9


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (failure(401, "Incorrect key"), "key_variable"),
        (failure(402), "money"),
        (failure(403), "key_variable"),
        (failure(404, "no such model"), "base_url"),
        (failure(405), "base_url"),
        (Sent(302, headers={"Location": "http://127.0.0.1:9/"}), "final address"),
        (failure(429, code="insufficient_quota"), "money"),
        (failure(400, code="unsupported_parameter"), "options"),
    ],
)
def test_a_refusal_stops_at_once(make, sent, wanted):
    with serving(otherwise=lambda body: sent) as (server, url):
        with pytest.raises(JudgeError) as caught:
            make(url, concurrency=2, backoff=5).rate(items(30))
        assert len(server.requests) <= 2  # one a thread
    text = str(caught.value)
    assert f"{url}/chat/completions: status {sent.status}" in text and wanted in text and KEY not in text


def test_a_question_that_is_too_long_fails_alone(make):
    def otherwise(body):
        long = len(body["messages"][0]["content"]) > 100_000
        return failure(400, "maximum context length", code="context_length_exceeded") if long else reply("8 6")

    long = [Item(f"long{i}", "Go on.", "a", f"{i}" + "ж" * 100_000) for i in range(8)]
    with serving(otherwise=otherwise) as (server, url):
        ratings = make(url).rate(long + items(3))
    assert [each.outcome for each in ratings.items] == ["failed"] * 8 + ["rated"] * 3 and len(server.requests) == 11
    assert "status 400" in ratings.items[0].problem and "maximum context length" in ratings.items[0].problem


def test_an_endpoint_that_is_not_there_is_given_up(make):
    with serving() as (_, url):
        pass  # its port is free again
    with pytest.raises(JudgeError, match="ConnectionRefusedError.*5 questions in a row.*base_url"):
        make(url).rate(items(50))
    assert make(url).rate(items(2)).counts()["failed"] == 2  # too few to tell: counted
    with pytest.raises(JudgeError, match="gaierror"):
        make("http://judge.invalid/v1", retries=0, give_up=1).rate(items(2))


def test_failures_between_replies_do_not_end_the_work(make):
    script = [failure(500), reply("8 6")] * 10
    with serving(*script) as (_, url):
        counts = make(url, retries=0, concurrency=1, give_up=2).rate(items(20)).counts()
    assert counts["failed"] == 10 and counts["rated"] == 10


def test_after_an_end_the_same_call_goes_on(make):
    with serving(*[reply("8 6")] * 6, otherwise=lambda body: failure(500)) as (_, url), pytest.raises(JudgeError):
        make(url, concurrency=1, give_up=3).rate(items(10))
    with serving() as (server, url):
        ratings = make(url).rate(items(10))
    assert ratings.counts()["rated"] == 10 and len(server.requests) == 4


def test_questions_are_asked_side_by_side(make):
    barrier = threading.Barrier(4)

    def otherwise(body):
        barrier.wait(5)  # breaks unless four are there at a time
        return scores_of(body)

    with serving(otherwise=otherwise) as (server, url):
        ratings = make(url, concurrency=4, timeout=5.0).rate(items(12))
    assert server.most == 4 and ratings.scores == [(9, 4)] * 12


def test_a_damaged_file_is_said_and_asked_again(make, tmp_path, capsys):
    with serving(otherwise=scores_of) as (_, url):
        make(url).rate(items(6))
        files = sorted((tmp_path / "replies").rglob("*.json"))
        assert len(files) == 6
        text = files[0].read_text()
        for file, damaged in zip(
            files, [text[: len(text) // 2], "", "[]", '{"replies": [8]}', '{"replies": 8}'], strict=False
        ):
            file.write_text(damaged)
        (files[0].parent / f".{files[0].name}.1").write_text("what a kill left")
        ratings = make(url).rate(items(6))
        assert ratings.scores == [(9, 4)] * 6 and ratings.counts()["asked"] == 5
        said = capsys.readouterr().out
        assert all(file.name in said for file in files[:5]) and files[5].name not in said
        assert make(url).rate(items(6)).counts()["from_cache"] == 6


def test_a_killed_process_pays_for_nothing_twice(make, tmp_path):
    code = (
        "import sys; from minillm.metrics.judge import Item, Judge\n"
        "items = [Item(f'id{i}', f'Question {i}?', f'reference {i}', f'answer {i}') for i in range(30)]\n"
        "Judge(sys.argv[1], 'm', sys.argv[2], 'JUDGE_API_KEY', concurrency=3).rate(items)"
    )
    reached, go_on = threading.Event(), threading.Event()
    sent = []

    def otherwise(body):
        sent.append(body)
        if len(sent) == 12:
            reached.set()
        if len(sent) >= 10 and not go_on.is_set():
            go_on.wait(30)
        return scores_of(body)

    with serving(otherwise=otherwise) as (server, url):
        process = subprocess.Popen(
            [sys.executable, "-c", code, url, str(tmp_path / "replies")], cwd=Path(__file__).parents[2]
        )
        assert reached.wait(60)  # 9 are answered, 3 on their way
        kept = len(list((tmp_path / "replies").rglob("*.json")))
        process.kill()
        process.wait()
        go_on.set()
        ratings = make(url, timeout=5.0).rate(items(30))
    assert kept == 9 and ratings.counts()["from_cache"] == 9 and ratings.scores == [(9, 4)] * 30
    assert len(server.requests) == 12 + 21


def test_a_cache_that_cannot_be_written_stops_before_anything_is_paid_for(make, tmp_path):
    (tmp_path / "file").write_text("")
    with serving() as (server, url):
        with pytest.raises(StorageError, match="cache_dir=.*file"):
            make(url, cache_dir=tmp_path / "file" / "replies").rate(items())
        (tmp_path / "replies").mkdir()
        for shard in range(256):
            (tmp_path / "replies" / f"{shard:02x}").write_text("")  # a disk that refuses midway
        with pytest.raises(StorageError, match="make room"):
            make(url, concurrency=1).rate(items(9))
    assert len(server.requests) == 1


def test_texts_of_any_kind_are_asked_and_kept(make):
    texts = ["", "{}", "東京 🗼 مرحبا", "\ud800", "\x00\r\n", "</s>" * 3, "a\u2028b"]
    strange = [Item(f"{i}", text, text, text) for i, text in enumerate(texts)]
    with serving() as (_, url):
        assert make(url).rate(strange).counts()["rated"] == 7
        assert make(url).rate(strange).counts()["from_cache"] == 7
        assert make(url).rate([]).counts()["items"] == 0 and make(url).rate([]).ratio is None
        with pytest.raises(DataError, match=r"1 ids come more than once \(id0\)"):
            make(url).rate(items() * 2)


WRONG = {
    "base_url=None": dict(base_url=None),
    "base_url='localhost:8000/v1'": dict(base_url="localhost:8000/v1"),
    "base_url='ftp://host/v1'": dict(base_url="ftp://host/v1"),
    "base_url='http://host/v1 x'": dict(base_url="http://host/v1 x"),
    "base_url: cannot be read": dict(base_url="http://host:port/v1"),
    "/chat/completions is added": dict(base_url="http://host/v1/chat/completions"),
    "base_url: holds": dict(base_url=f"http://host/v1?key={'x' * 9}"),
    "base_url: holds the value of JUDGE_API_KEY": dict(base_url=f"http://host/{KEY}"),
    "model=''": dict(model=""),
    "model: holds": dict(model=KEY),
    "options.user: holds": dict(options={"user": KEY}),
    "options.stream": dict(options={"stream": True}),
    "options: wanted": dict(options={"x": object()}),
    "cache_dir: wanted": dict(cache_dir=""),
    "cache_dir: holds": dict(cache_dir=f"/x/{KEY}"),
    "timeout=0": dict(timeout=0),
    "retries=-1": dict(retries=-1),
    "backoff=-1": dict(backoff=-1),
    "longest_wait=-1": dict(longest_wait=-1),
    "asks=0": dict(asks=0),
    "concurrency=0": dict(concurrency=0),
    "give_up=0": dict(give_up=0),
    "key_variable: wanted the NAME": dict(key_variable=KEY),
    "key_variable=ABSENT_API_KEY: this environment variable is not set": dict(key_variable="ABSENT_API_KEY"),
    "key_variable=BAD_API_KEY: its value cannot be a key": dict(key_variable="BAD_API_KEY"),
}


@pytest.mark.parametrize(("problem", "changes"), WRONG.items())
def test_wrong_settings_are_refused_without_showing_a_key(make, monkeypatch, problem, changes):
    monkeypatch.setenv("BAD_API_KEY", "two\nlines-of-it")
    with pytest.raises(ConfigError) as caught:
        make(**{"base_url": "http://host/v1", **changes})
    assert len(caught.value.problems) == 1 and problem in str(caught.value)
    assert KEY not in str(caught.value) and "xxx" not in str(caught.value) and "lines-of-it" not in str(caught.value)


def test_a_config_makes_one():
    node = {"_target_": "minillm.metrics.judge.Judge", "base_url": "http://host/v1", "model": "m", "cache_dir": "x"}
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
        Sent(body=f"<html>Bearer {KEY}</html>"),
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
    seen += [repr(judge), str(judge), json.dumps(asdict(judge), default=str), repr(judge._endpoint()), repr(ratings)]
    assert not secret_problems({name: str(value) for name, value in asdict(judge).items()})
    captured = capfd.readouterr()
    seen += [captured.out, captured.err, caplog.text]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    seen += [file.read_text() + str(file) for file in files]
    assert not [text for text in map(str, seen) if KEY in text or "Secret7" in text]
    assert any("[key]" in str(text) for text in seen)


def test_the_key_does_not_follow_a_redirection(make):
    with serving() as (other, elsewhere):
        with (
            serving(Sent(307, headers={"Location": f"{elsewhere}/chat/completions"})) as (_, url),
            pytest.raises(JudgeError, match="sends the question elsewhere"),
        ):
            make(url).rate(items())
        assert not other.requests


@pytest.mark.filterwarnings("error")
def test_no_socket_is_left_open(make):
    script = [failure(500), Sent(body="?"), replace(reply("8 6"), cut=9), replace(reply("8 6"), cut=9, stall=True)]
    with serving(*script) as (_, url):
        assert make(url, retries=4).rate(items()).ratio
    gc.collect()
