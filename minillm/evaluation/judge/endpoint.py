"""One question to an OpenAI-compatible endpoint: POST base_url/chat/completions, asked again where that can help."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn
from urllib.parse import urlsplit

from minillm.common.errors import JudgeError, check
from minillm.common.secret import names_secret, secret_problems

_LARGEST = 2**22  # bytes of a body that are read
_SHOWN = 300  # characters of a body in a message
_TRANSIENT = {408, 409, 429}
_REFUSALS = {
    401: "wanted a key that it accepts in the environment variable that key_variable names",
    402: "wanted an account with money on it",
    403: "wanted a key (key_variable) that may use this model (model)",
    404: "wanted an address (base_url) that comes before /chat/completions and a model that it has (model)",
    405: "wanted an address (base_url) that comes before /chat/completions",
}
# What OpenAI's error.code says of the account or of the settings: no retry and no other question helps.
_HOPELESS = {
    "insufficient_quota": "wanted an account with money on it",
    "credit_balance_exhausted": "wanted an account with money on it",
    "unsupported_parameter": "wanted a parameter that this model takes (options)",
    "unsupported_value": "wanted a value that this model takes (options)",
}


class Unanswered(Exception):
    """This question got no answer; others may. `rejected`: the endpoint does not take it (too long, for instance)."""

    def __init__(self, problem: str, *, rejected: bool = False):
        super().__init__(problem)
        self.rejected = rejected


class _Transient(Exception):
    def __init__(self, problem: str, wait: float = 0.0):
        super().__init__(problem)
        self.wait = wait  # seconds that the endpoint asks for


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would follow with GET, and to any host."""

    def redirect_request(self, *_):
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. It may be shared by threads.

    The key is read from the environment variable `key_variable` for each request (None: no key is sent); it is no
    field, and where an endpoint repeats it, it is blotted out. Proxies are those of the environment.

    timeout: seconds without a byte, and for the whole body. retries: of a status 408, 409, 429 or 5xx, of a connection
    that fails and of a body that is no chat completion; the k-th waits backoff x 2^k seconds (a random half to all of
    it), at least what Retry-After says. longest_wait: seconds; where more is asked for, the question is given up.
    """

    base_url: str
    key_variable: str | None = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    longest_wait: float = 120.0

    def __post_init__(self):
        check(
            *((False, problem) for problem in _address_problems(self.base_url)),
            *((False, problem) for problem in _key_problems(self.key_variable)),
            (self.timeout > 0, f"timeout={self.timeout}: wanted seconds above 0"),
            (self.retries >= 0, f"retries={self.retries}: wanted 0 or more"),
            (self.backoff >= 0, f"backoff={self.backoff}: wanted 0 seconds or more"),
            (self.longest_wait >= 0, f"longest_wait={self.longest_wait}: wanted 0 seconds or more"),
        )

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + "/chat/completions"

    def chat(self, body: Mapping, stop: threading.Event) -> str:
        """The text of the reply, empty where the model gave none. `stop` ends the waiting between attempts.

        Raises:
            JudgeError: no question will be answered. Unanswered: this one was not.
        """
        payload = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._ask(payload)
            except _Transient as error:
                if error.wait > self.longest_wait:
                    raise Unanswered(
                        f"{error}; it asks to wait {error.wait:.0f} s, more than longest_wait={self.longest_wait:g}"
                    ) from None
                if attempt == self.retries:
                    raise Unanswered(f"{error}; asked {attempt + 1} times") from None
                longest = min(self.backoff * 2 ** min(attempt, 30), self.longest_wait)
                # Of the system's own generator: the program's stays where its seed put it.
                pause = longest * random.SystemRandom().uniform(0.5, 1)
                if stop.wait(max(pause, error.wait)):
                    raise Unanswered(f"{error}; stopped") from None
        raise AssertionError("unreachable")

    def _ask(self, payload: bytes) -> str:
        request = urllib.request.Request(self.url, payload, {"Content-Type": "application/json"}, method="POST")
        if key := _key(self.key_variable):
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise JudgeError(
                    self._blotted(f"{self.url}: its certificate is refused ({reason}) (base_url)")
                ) from None
            raise _Transient(self._blotted(f"{self.url}: {type(reason).__name__} ({reason})")) from None
        content = _content(text)
        if content is None:
            raise _Transient(f"{self.url}: the body is no chat completion: {self._shown(text)}")
        return self._blotted(content)

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        return urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))

    def _read(self, response) -> str:
        """The socket's timeout starts anew with each byte: a body that trickles needs a deadline."""
        deadline, blocks, size = time.monotonic() + self.timeout, [], 0
        while size < _LARGEST and (block := response.read1(2**16)):
            blocks.append(block)
            size += len(block)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the body took more than timeout={self.timeout:g} s")
        return b"".join(blocks).decode("utf-8", errors="replace")

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        """Raises what a status means."""
        try:
            text = self._read(error)
        except (OSError, http.client.HTTPException):
            text = ""
        problem = f"{self.url}: status {error.code} ({self._shown(text)})"
        if wanted := _HOPELESS.get(_error_code(text)) or _REFUSALS.get(error.code):
            raise JudgeError(f"{problem}; {wanted}") from None
        if 300 <= error.code < 400:
            raise JudgeError(
                f"{problem}: it sends the question elsewhere; wanted the final address (base_url)"
            ) from None
        if error.code in _TRANSIENT or error.code >= 500:
            raise _Transient(problem, _retry_after(error.headers)) from None
        raise Unanswered(f"{problem}; not asked again", rejected=True) from None

    def _shown(self, text: str) -> str:
        text = " ".join(self._blotted(text).split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."

    def _blotted(self, text: str) -> str:
        key = _key(self.key_variable)
        return _spellings(key).sub("[key]", text) if len(key) >= 8 else text  # a shorter one is in innocent texts


def _key(variable: str | None) -> str:
    return os.environ.get(variable, "").strip() if variable else ""


def _spellings(key: str) -> re.Pattern[str]:
    """The key as it is, in JSON's escapes (\\/, \\u002b, also in a JSON text inside of another) or percent-encoded."""
    return re.compile(
        "".join(rf"(?:\\{{0,8}}(?:{re.escape(char)}|(?i:u{ord(char):04x}))|(?i:%{ord(char):02x}))" for char in key)
    )


def _address_problems(base_url: str) -> list[str]:
    """The text is only shown where it can hold no secret."""
    wanted = "wanted an address such as https://api.openai.com/v1"
    if problems := secret_problems({"base_url": base_url}):
        return problems
    if not isinstance(base_url, str) or not base_url:
        return [f"base_url={base_url!r}: {wanted}"]
    try:
        parts = urlsplit(base_url)
        name, _ = parts.hostname, parts.port
    except ValueError:
        return [f"base_url: cannot be read; {wanted}"]
    if "@" in base_url or parts.query or parts.fragment:
        return [
            f"base_url: holds a name, a password or what follows ? or #; {wanted}, the key in key_variable's variable"
        ]
    if parts.scheme not in ("http", "https") or not name or not base_url.isascii() or len(base_url.split()) != 1:
        return [f"base_url={base_url!r}: {wanted}"]
    if parts.path.rstrip("/").endswith("/chat/completions"):
        return [f"base_url={base_url!r}: {wanted}; /chat/completions is added"]
    return []


def _key_problems(variable: str | None) -> list[str]:
    if variable is None:
        return []
    if not isinstance(variable, str) or not names_secret(variable):  # its text may be a key: never shown
        return [
            "key_variable: wanted the NAME of an environment variable, ending in API_KEY, TOKEN, SECRET or PASSWORD, "
            "for example OPENAI_API_KEY, or null where the endpoint wants no key; never the key"
        ]
    key = _key(variable)
    if not key:
        return [
            f"key_variable={variable}: this environment variable is not set; set it, or key_variable=null for no key"
        ]
    if not (key.isascii() and key.isprintable() and " " not in key):
        return [f"key_variable={variable}: its value cannot be a key; wanted printable ASCII without blanks"]
    return []


def _content(text: str) -> str | None:
    """The reply in a chat completion, None where the body is something else."""
    try:
        message = json.loads(text)["choices"][0]["message"]
        content = message.get("content")
        if isinstance(content, list):  # parts
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        content = content or message.get("refusal") or ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return content if isinstance(content, str) else None


def _error_code(text: str) -> str | None:
    try:
        code = json.loads(text)["error"]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return code if isinstance(code, str) else None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint asks to wait: a number, an HTTP date, or OpenAI's milliseconds; 0 where it does not."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        text = headers.get("Retry-After", "0")
        if text.replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
