"""A server that speaks OpenAI's chat protocol on this machine, and fails as real ones do, as it is told."""

from __future__ import annotations

import itertools
import json
import socketserver
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from minillm.evaluation.judge.judge import Item, Judge

KEY = "sk-" + "Secret7" * 4


@dataclass
class Sent:
    """What the server sends for one request. `cut`: bytes after which it hangs up; `stall`: it sends the first `cut`
    bytes of the body, then nothing until it is closed; `trickle`: seconds between bytes."""

    status: int = 200
    body: str = ""
    headers: dict = field(default_factory=dict)
    cut: int | None = None
    stall: bool = False
    trickle: float = 0.0


def reply(text) -> Sent:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    return Sent(body=json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}))


def failure(status: int, message: str = "no", code: str | None = None, **headers: str) -> Sent:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Sent(status, json.dumps({"error": {"message": message, "code": code}}), headers)


class ChatServer:
    """`script` is sent first, one each, then what `otherwise` makes of a request. `requests`: their paths, headers and
    bodies; `most`: how many were at work at a time."""

    def __init__(
        self, script: Iterable[Sent] = (), otherwise: Callable[[dict], Sent] = lambda body: reply("8 6\nGood.")
    ):
        self.script, self.otherwise = list(script), otherwise
        self.requests: list[tuple[str, dict, dict]] = []
        self.at_work = self.most = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def next(self, path: str, headers: dict, body: dict) -> Sent:
        with self.lock:
            self.requests.append((path, headers, body))
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            scripted = self.script.pop(0) if self.script else None
        return scripted or self.otherwise(body)

    @property
    def texts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.requests]


@contextmanager
def serving(*script: Sent, **how):
    """The server and its base_url; ends with its threads and sockets."""
    chat = ChatServer(script, **how)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent = chat.next(self.path, {name.title(): value for name, value in self.headers.items()}, body)
            with chat.lock:
                chat.at_work -= 1  # before the client can ask again
            with suppress(OSError):  # the client has gone
                self.send(sent)

        def send(self, sent: Sent) -> None:
            data = sent.body.encode()
            self.send_response(sent.status)
            for name, value in {"Content-Length": str(len(data)), **sent.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(len(data))[: sent.cut] if sent.trickle else ():
                self.wfile.write(data[start : start + 1])
                if chat.closing.wait(sent.trickle):
                    return
            if not sent.trickle:
                self.wfile.write(data[: sent.cut])
            if sent.stall:
                chat.closing.wait(30)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # joined when it closes
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield chat, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        chat.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def pouring(*pieces: bytes, pause: float = 0.0):
    """A server below HTTP, and its base_url: to each request it sends the pieces, the last one for ever. The list names
    the connections that the client has closed."""
    closed, closing = [], threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(2**16)
            try:
                for piece in itertools.chain(pieces, itertools.repeat(pieces[-1])):
                    if closing.wait(pause):
                        return
                    self.request.sendall(piece)
            except OSError:
                closed.append(self.client_address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield closed, f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            closing.set()
            server.shutdown()
            thread.join()


def judges(folder: Path, monkeypatch) -> Callable[..., Judge]:
    """Makes judges that are quick to give up, with their key in the environment."""
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    quick = dict(key_variable="JUDGE_API_KEY", timeout=5.0, retries=2, deadline=20.0)

    def make(base_url: str, **changes) -> Judge:
        return Judge(**{"base_url": base_url, "model": "m", "cache_dir": folder / "replies", **quick, **changes})

    return make


def items(n: int = 1) -> list[Item]:
    return [Item(f"id{i}", f"Question {i}?", f"reference {i}", f"answer {i}") for i in range(n)]


def scores_of(body: dict) -> Sent:
    """9 for what begins with "answer", 4 for a reference, wherever they stand."""
    first, second = (part.split("\n")[1] for part in body["messages"][0]["content"].split("[Response of ")[1:])
    return reply(" ".join("9" if text.startswith("answer") else "4" for text in (first, second)))
