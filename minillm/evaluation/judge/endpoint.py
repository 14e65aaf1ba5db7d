"""One question to an endpoint that speaks OpenAI's protocol: `openai`'s client, inside one deadline."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote

import httpx2
import openai

from minillm.common.errors import JudgeError

_SHOWN = 300  # characters of a body in a message
_LARGEST = 2**22  # bytes of a body that are read
_REFUSED = (401, 402, 403, 404, 405)  # no retry and no other question helps; nor with these codes:
_CODES = ("insufficient_quota", "credit_balance_exhausted", "unsupported_parameter", "unsupported_value")
for _name in ("openai", "httpx2", "httpcore2"):  # a line a request, and headers in which an endpoint may repeat the key
    logging.getLogger(_name).setLevel(logging.WARNING)


class Unanswered(Exception):
    """This question got no answer; others may. `rejected`: the endpoint does not take it (too long, for instance)."""

    def __init__(self, problem: str, *, rejected: bool = False):
        super().__init__(problem)
        self.rejected = rejected


class Endpoint:
    """Asks by `client`, which is to be closed. The key is sent to `base_url` only: redirections are not
    followed, and where the endpoint repeats the key, [key] stands in its place."""

    def __init__(self, base_url: str, key: str, *, timeout: float, retries: int, deadline: float):
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [_bound]})
        self.client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=retries, http_client=http
        )
        self._headers = {"Content-Type": "application/json"} | ({} if key else {"Authorization": openai.omit})
        self._url, self._key, self._deadline = f"{base_url.rstrip('/')}/chat/completions", key, deadline

    async def ask(self, body: Mapping) -> str:
        """The text of the reply, empty where the model gave none. Waits and retries included, it takes `deadline`
        seconds at most, whatever the endpoint sends.

        Raises:
            JudgeError: no question will be answered. Unanswered: this one was not.
        """
        content = json.dumps(body).encode()  # in ASCII: the client's own has no place for half a surrogate pair
        try:
            async with asyncio.timeout(self._deadline):
                response = await self.client.post(
                    "/chat/completions", cast_to=httpx2.Response, content=content, options={"headers": self._headers}
                )
        except TimeoutError:
            raise Unanswered(f"{self._url}: no answer within deadline={self._deadline:g} s") from None
        except openai.APIStatusError as error:
            status = error.status_code
            problem = f"{self._url}: status {status} ({self._shown(error.response.text)})"
            if status < 400 or status in _REFUSED or error.code in _CODES:
                raise JudgeError(
                    f"{problem}; wanted the final address (base_url), a model that it has (model), parameters that the "
                    "model takes (options), and a key that it accepts, with money on its account (key_variable)"
                ) from None
            raise Unanswered(problem, rejected=status < 500 and status not in (408, 409, 429)) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            raise Unanswered(self._shown(f"{self._url}: {type(cause).__name__} ({cause})")) from None
        if (reply := _content(response.text)) is None:
            raise Unanswered(f"{self._url}: the body is no chat completion: {self._shown(response.text)}")
        return _redacted(reply, self._key)

    def _shown(self, text: str) -> str:
        text = " ".join(_redacted(text, self._key).split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


async def _bound(response: httpx2.Response) -> None:
    """Before a body is read: it is UTF-8, whatever its headers name, and ends after _LARGEST bytes."""
    response.encoding, response.stream = "utf-8", _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream):
        self.stream, self.aclose = stream, stream.aclose

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self.stream:
            size += len(piece)
            if size > _LARGEST:
                raise httpx2.ReadError(f"a body of more than {_LARGEST} bytes")
            yield piece


def _content(body: str) -> str | None:
    """The reply in a chat completion; None where the body is none."""
    try:
        message = json.loads(body)["choices"][0]["message"]
        content = message.get("content")
        if isinstance(content, list):  # parts
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        content = content or message.get("refusal") or ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return content if isinstance(content, str) else None


def _redacted(text: str, key: str) -> str:
    """Without the key as it is, in JSON's escapes or percent-encoded. A key of less than 8 characters stays: it is in
    innocent texts."""
    for spelling in (key, json.dumps(key)[1:-1], key.replace("/", r"\/"), quote(key, safe="")):
        text = text.replace(spelling, "[key]") if len(key) >= 8 else text
    return text
