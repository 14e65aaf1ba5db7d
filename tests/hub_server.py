"""A stand-in for the Hugging Face hub: it makes repositories and takes commits, over HTTP on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """`refuse`: the status of the answer to a request whose path has this part. `made`: what was asked for each
    repository. `files`: what was committed, by its path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.refuse: dict[str, int] = {}
        self.made: list[dict] = []
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        status = next((status for part, status in self.server.refuse.items() if part in self.path), 200)
        self._send(status, {"error": "refused"} if status != 200 else self._answer(body))

    def do_GET(self):
        self._send(404 if self.path.startswith("/api/models/") else 200, {})

    do_HEAD = do_GET

    def _answer(self, body: bytes) -> dict:
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {each["path"]: base64.b64decode(each["content"]) for each in sent}
            return {"commitUrl": f"{self.server.address}/me/mine/commit/1", "commitOid": "a" * 40}
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return {"url": f"{self.server.address}/me/mine"}
        return {}

    def _send(self, status: int, answer: dict) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@contextmanager
def hub_server() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
