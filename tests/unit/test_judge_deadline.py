"""One deadline for a question of the judge, and one limit for a body, whatever the endpoint sends."""

import time
from dataclasses import replace

import pytest

from tests.chat_server import items, judges, pouring, reply, serving


@pytest.fixture
def make(tmp_path, monkeypatch):
    return judges(tmp_path, monkeypatch)


HEAD = b"HTTP/1.1 200 OK\r\n"
HOSTILE = {  # the pieces, the last one for ever; seconds between them
    "trickled headers": ((HEAD, b"X-Pad: 1\r\n"), 0.05),
    "a trickled body": ((HEAD + b"Content-Length: 9999\r\n\r\n", b" "), 0.05),
    "a trickled body of a failure": ((b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n", b" "), 0.05),
    "100 Continue for ever": ((b"HTTP/1.1 100 Continue\r\n\r\n",), 0.0),
    "100 Continue for ever, slowly": ((b"HTTP/1.1 100 Continue\r\n\r\n",), 0.05),
}


@pytest.mark.some(5)
@pytest.mark.parametrize(("pieces", "pause"), HOSTILE.values(), ids=HOSTILE)
def test_the_deadline_holds_whatever_the_endpoint_sends(make, pieces, pause):
    with pouring(*pieces, pause=pause) as (closed, url):
        begin = time.monotonic()
        (rating,) = make(url, deadline=0.5).rate(items()).items
        assert 0.4 <= time.monotonic() - begin < 4  # a timeout of 5 seconds without a byte never comes
        assert rating.outcome == "failed" and "no answer within deadline=0.5 s" in rating.problem
        assert wait_for(lambda: len(closed) == 1)  # the connection is closed, the answer is not awaited further


def test_a_body_ends_at_a_few_million_bytes_and_is_utf_8(make):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=zlib_codec\r\n"
    with pouring(head + b"Content-Length: 9999999999\r\n\r\n", b"a" * 2**20) as (_, url):
        (rating,) = make(url, retries=0).rate(items()).items
        assert "a body of more than 4194304 bytes" in rating.problem
    with serving(replace(reply("9 4"), headers={"Content-Type": "text/plain; charset=zlib_codec"})) as (_, url):
        assert make(url).rate(items()).items[0].outcome == "rated"


def wait_for(condition) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
