"""The judge against a server on this machine that speaks the protocol: it counts, fails, stalls and talks nonsense."""

import asyncio
import gc
import signal
import threading
import time
import warnings
from dataclasses import replace

import pytest

from minillm.common.errors import JudgeError
from minillm.evaluation.judge.judge import Item
from minillm.evaluation.judge.verdict import REMINDER
from tests.chat_server import KEY, Sent, failure, items, judges, reply, scores_of, serving


@pytest.fixture
def make(tmp_path, monkeypatch):
    return judges(tmp_path, monkeypatch)


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


@pytest.mark.parametrize("status", [408, 429, 503])
def test_a_failure_that_passes_is_waited_for(make, status):
    with serving(failure(status), failure(status)) as (server, url):
        ratings = make(url).rate(items())
    assert ratings.items[0].outcome == "rated" and len(server.requests) == 3 and ratings.counts()["asked"] == 1


def test_retry_after_is_respected_up_to_two_minutes(make):
    with serving(failure(429, Retry_After="0.4")) as (server, url):
        begin = time.monotonic()
        assert make(url).rate(items()).ratio
    assert 0.4 <= time.monotonic() - begin < 3 and len(server.requests) == 2
    with serving(failure(429, Retry_After="Wed, 21 Oct 2093 07:28:00 GMT")) as (server, url):
        (rating,) = make(url).rate([Item("late", "?", "a", "b")]).items
    assert rating.outcome == "failed" and "status 429" in rating.problem and len(server.requests) == 1


@pytest.mark.parametrize("cut", [0, 30], ids=["silence", "half a body"])
def test_a_stall_ends_at_the_timeout_and_is_asked_again(make, cut):
    with serving(replace(reply("8 6"), cut=cut, stall=True)) as (server, url):
        begin = time.monotonic()
        ratings = make(url, timeout=0.4).rate(items())
        assert 0.4 <= time.monotonic() - begin < 5
    assert ratings.items[0].outcome == "rated" and len(server.requests) >= 2


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
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
def test_a_body_that_is_no_chat_completion_fails_and_is_never_kept(make, sent):
    with serving(sent) as (_, url):
        ratings = make(url).rate(items())
        assert ratings.counts() | {"failed": 1, "asked": 0, "from_cache": 0} == ratings.counts()
        assert "the body is no chat completion" in ratings.items[0].problem and ratings.ratio is None
        assert make(url).rate(items()).counts()["asked"] == 1


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
            make(url, concurrency=2, retries=0).rate(items(30))
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


def test_an_endpoint_that_rejects_every_question_is_no_result(make):
    """As one does that knows another name for max_tokens, with no code that says so."""
    with serving(otherwise=lambda body: failure(400, "unknown field options")) as (server, url):
        with pytest.raises(JudgeError, match="unknown field options.*6 of the 6 that failed.*none of 6 was answered"):
            make(url).rate(items(6))
        few = make(url).rate(items(4))  # too few to tell
    assert few.counts()["failed"] == 4 and len(server.requests) == 10
    with serving() as (server, url):
        assert make(url).rate(items(6)).counts()["rated"] == 6
    with serving(otherwise=lambda body: failure(400)) as (_, url):
        found = make(url).rate([Item(f"new{i}", f"{i}?", "a", "b") for i in range(6)] + items(1))
    assert found.counts() | {"failed": 6, "rated": 1} == found.counts()  # a reply of an earlier call counts


def test_the_reason_of_failures_is_told_with_how_many_share_it(make):
    script = [failure(400, "too long"), failure(413, "too large"), failure(400, "too long")]
    with serving(*script) as (_, url):
        ratings = make(url, concurrency=1).rate(items(5))
    assert ratings.first_failure().endswith("(2 of the 3 that failed)") and "too long" in ratings.first_failure()
    with serving() as (_, url):
        assert make(url).rate(items(5)).first_failure() is None


def test_an_endpoint_that_is_not_there_is_given_up(make):
    with serving() as (_, url):
        pass  # its port is free again
    with pytest.raises(JudgeError, match="ConnectError.*5 questions in a row.*base_url"):
        make(url).rate(items(50))
    assert make(url).rate(items(2)).counts()["failed"] == 2  # too few to tell: counted


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


def test_texts_of_any_kind_are_asked_and_kept(make):
    texts = ["", "{}", "東京 🗼 مرحبا", "\ud800", "\x00\r\n", "</s>" * 3, "a\u2028b"]
    strange = [Item(f"{i}", text, text, text) for i, text in enumerate(texts)]
    with serving() as (_, url):
        assert make(url).rate(strange).counts()["rated"] == 7
        assert make(url).rate(strange).counts()["from_cache"] == 7
        assert make(url).rate([]).counts()["items"] == 0 and make(url).rate([]).ratio is None


def test_in_a_notebook_where_a_loop_runs_already(make):
    async def cell():
        return make(url).rate(items()).counts()["rated"]

    with serving() as (_, url):
        assert asyncio.run(cell()) == 1


def test_ctrl_c_ends_the_questions_on_their_way(make):
    both = threading.Barrier(2, action=lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))

    def otherwise(body):
        both.wait(30)  # 3 are answered, 2 on their way
        return replace(reply("8 6"), cut=0, stall=True)

    with serving(*[reply("8 6")] * 3, otherwise=otherwise) as (server, url):
        with pytest.raises(KeyboardInterrupt):
            make(url, timeout=60.0, deadline=60.0, concurrency=2).rate(items(9))
        assert len(server.requests) == 5
    with serving() as (server, url):
        assert make(url).rate(items(9)).counts()["asked"] == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_no_socket_is_left_open(make):
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # what other tests have left
    script = [failure(500), replace(reply("8 6"), cut=9), replace(reply("8 6"), cut=9, stall=True)]
    with serving(*script) as (_, url):
        assert make(url, retries=4, timeout=0.4).rate(items()).ratio
    gc.collect()
