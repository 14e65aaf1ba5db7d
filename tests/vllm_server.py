"""A server with the JSON of vLLM 0.32 (seen on a real one) around a tiny model of the test."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM

from tests.tiny import make_tokenizer


class Refused(Exception):
    pass


class FakeVllm:
    """`scores` makes of logits what the server calls log-probs. `requests`: (path, body) of all."""

    def __init__(self, network, tokenizer=None, *, name="t", max_logprobs=20, max_model_len=512, scores=None):
        self.network, self.tokenizer, self.name = network.eval(), tokenizer or make_tokenizer(), name
        self.max_logprobs, self.max_model_len = max_logprobs, max_model_len
        self.scores = scores or (lambda logits: logits.log_softmax(-1))
        self.requests: list[tuple[str, dict]] = []
        self.dies_after = float("inf")  # so many requests
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict) -> dict:
        with self.lock, torch.no_grad():
            self.requests.append((path, body))
            method = getattr(self, path.strip("/").removeprefix("v1/"), None)
            if method is None:
                raise Refused("Not Found")
            return method(body)

    def models(self, _) -> dict:
        return {"object": "list", "data": [{"id": self.name, "root": self.name, "max_model_len": self.max_model_len}]}

    def detokenize(self, body) -> dict:
        return {"prompt": self.tokenizer.decode(body["tokens"])}

    def collective_rpc(self, body) -> dict:
        assert body["method"] == "reload_weights"
        loaded = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"], dtype=self.network.dtype)
        self.network.load_state_dict(loaded.state_dict())
        return {"results": [None]}

    def reset_prefix_cache(self, _) -> dict:
        return {"success": True}

    def completions(self, body) -> dict:
        if body["model"] != self.name:
            raise Refused(f"The model `{body['model']}` does not exist.")
        if (k := body.get("prompt_logprobs") or 0) > self.max_logprobs:
            raise Refused(f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}")
        if max(map(len, body["prompt"])) + body["max_tokens"] > self.max_model_len or body["max_tokens"] < 1:
            raise Refused(f"This model's maximum context length is {self.max_model_len} tokens.")
        choices = [{"index": n, **self.complete(prompt, body)} for n, prompt in enumerate(body["prompt"])]
        return {"object": "text_completion", "model": self.name, "choices": choices[::-1]}  # in no order

    def complete(self, prompt, body) -> dict:
        logits = self.network(torch.tensor([prompt])).logits[0]
        listed = None
        if (k := body.get("prompt_logprobs")) is not None:
            listed = [None, *(self.entry(row, token, k) for row, token in zip(logits[:-1], prompt[1:], strict=True))]
        ids, logprobs, ended = list(prompt), [], False
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        while not ended and len(logprobs) < body["max_tokens"]:
            logits = self.network(torch.tensor([ids])).logits[0, -1]
            ids.append(int(torch.multinomial((logits / body["temperature"]).softmax(-1), 1, generator=generator)))
            logprobs.append(float(self.scores(logits)[ids[-1]]))
            ended = ids[-1] in [self.tokenizer.eos_token_id, *body.get("stop_token_ids", ())]
        return {
            "token_ids": ids[len(prompt) :] if body.get("return_token_ids") else None,
            "logprobs": {"token_logprobs": logprobs} if "logprobs" in body else None,
            "finish_reason": "stop" if ended else "length",
            "prompt_logprobs": listed,
        }

    def entry(self, logits, token, k) -> dict:
        scores = self.scores(logits)
        rank = int((scores >= scores[token]).sum())
        found = {str(token): {"logprob": float(scores[token]), "rank": rank, "decoded_token": ""}}
        for place, each in enumerate(scores.topk(min(k, len(scores))).indices.tolist()):
            found[str(each)] = {"logprob": float(scores[each]), "rank": place + 1, "decoded_token": ""}
        return found


@contextmanager
def serving(network, **options):
    """The fake and its address."""
    fake = FakeVllm(network, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            if len(fake.requests) >= fake.dies_after:
                self.close_connection = True
                return
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            try:
                status, found = 200, fake.answer(self.path, body)
            except Refused as error:
                status, found = 400, {"error": {"message": str(error), "type": "BadRequestError", "code": 400}}
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
