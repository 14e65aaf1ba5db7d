"""A teacher that runs in other processes (`minillm.serve`): its head is here, its hidden states are requested.

Axes: B rows, S positions, H width, N positions whose states are requested.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import requests
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

import minillm
from minillm.common.errors import ModelError, Unanswered
from minillm.common.secret import SERVE_TOKEN
from minillm.models.language_model import LanguageModel

MODEL = "minillm-model"  # the header of each response: the digest of the server's model
_CONNECT, _FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 0.25, 8.0  # seconds


class Server:
    """One address. One request may take `timeout` seconds. A failed one (no connection, status 500 or higher) is
    repeated after pauses that double, until `patience` seconds after the first try."""

    def __init__(self, url: str, patience: float, timeout: float, key: str = "model.teacher.url"):
        self.url, self.patience, self.timeout, self.key = url.rstrip("/"), patience, timeout, key
        self.model: str | None = None  # digest of the model that the server must have
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc: the token is for this server alone
        if token := os.environ.get(SERVE_TOKEN):
            self._session.headers["Authorization"] = f"Bearer {token}"

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """The body of the response.

        Raises:
            Unanswered: no response within `patience`.
            ModelError: the server refuses the request (with its own words), or serves another model than before.
        """
        method, deadline = "GET" if body is None else "POST", time.monotonic() + self.patience
        options, who = dict(timeout=(_CONNECT, self.timeout), allow_redirects=False), self.key.split(".")[-2]
        for attempt in count():
            try:
                answer = self._session.request(method, self.url + path, data=body, **options)
                if answer.status_code < 500:
                    break
                problem = f"status {answer.status_code}"
            except requests.RequestException as error:
                problem = type(error).__name__
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
            if time.monotonic() + pause > deadline:
                raise Unanswered(f"the {who}'s server {self.url}: no answer in {self.patience:g} s ({problem})")
            time.sleep(pause)
        self.check(answer)
        return answer.content

    def check(self, answer: requests.Response) -> None:
        found, where = answer.headers.get(MODEL), f"{self.key}={self.url}"
        if found is None:
            raise ModelError(f"{where}: no server of minillm; wanted python -m minillm.serve, or protocol=vllm")
        if answer.status_code != 200:
            raise ModelError(f"{where}: {answer.text.strip()}")
        if found != (self.model or found):
            raise ModelError(f"{where}: serves another model than before (digest {found}, wanted {self.model})")


def without_weights(config: PretrainedConfig, dtype: torch.dtype | None, ends: GenerationConfig) -> PreTrainedModel:
    """The shapes of a model that runs elsewhere. `ends` names the tokens that end an answer."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    network.generation_config, network.name_or_path = ends, ""
    return network


class ServedTokenizer(dict):
    """Token to id, with the attributes of a tokenizer that `compare_vocabularies` reads."""

    def __init__(self, vocabulary: dict[str, int], **names: Any):
        super().__init__(vocabulary)
        vars(self).update(names)

    get_vocab = dict.copy


class ServedTeacher(LanguageModel):
    """Scores answers by one or several servers of the same model, which divide the rows among them. `network` has the
    shapes of the served model. Its head has weights, its body has none (meta device)."""

    served = True

    def __init__(self, servers: list[Server], about: dict[str, Any], head: dict[str, Tensor]):
        config = CONFIG_MAPPING[about["config"]["model_type"]].from_dict(about["config"])
        network = without_weights(config, getattr(torch, about["dtype"]), GenerationConfig(eos_token_id=about["stops"]))
        self._layer = network.get_output_embeddings()
        for name, value in head.items():
            setattr(self._layer, name, nn.Parameter(value))
        super().__init__(network)
        self.servers, self.digest = servers, about["digest"]
        self.max_tokens, self.max_length = about["max_tokens"], about["max_length"]
        self.frozen()

    @property
    def device(self) -> torch.device:
        return self._layer.weight.device

    def to(self, device: torch.device) -> None:
        """Move the head."""
        self._layer.to(device)

    def hidden(self, ids_BS: Tensor, cache=None) -> Tensor:
        """Raises ModelError."""
        raise ModelError("model.teacher.url: a served teacher scores answers and writes none; set sampler.alpha=0")

    @torch.no_grad()
    def states(self, ids_BS: Tensor, state_N: Tensor, token_N: Tensor | None = None) -> Tensor:
        """Last hidden states [N, H] at these places of [B * S], in the teacher's type. Raises: see `Server.ask`."""
        (n_rows, width), ids_BS, state_N = ids_BS.shape, ids_BS.cpu(), state_N.cpu()
        n_servers = len(self.servers)
        size = min(-(-n_rows // n_servers), max(1, self.max_tokens // width))  # rows of a request
        request_N = state_N // (size * width)

        def ask(n: int) -> Tensor:
            places_N = state_N[request_N == n] - n * size * width
            body = save({"ids_BS": ids_BS[n * size : (n + 1) * size].contiguous(), "state_N": places_N})
            return load(self.servers[n % n_servers].ask("/states", body))["hidden_NH"]

        with ThreadPoolExecutor(n_servers) as threads:
            found_NH = torch.cat(list(threads.map(ask, request_N.unique().tolist())))
        hidden_NH = torch.empty_like(found_NH)
        hidden_NH[request_N.argsort(stable=True)] = found_NH
        return hidden_NH.to(self.device)


def connect(urls: list[str], patience: float, timeout: float) -> tuple[ServedTeacher, ServedTokenizer]:
    """The teacher at these addresses, with its head on the CPU, and its tokenizer. Raises ModelError if a server does
    not respond, refuses, or serves another model than the first one."""
    servers, abouts = [Server(url, patience, timeout) for url in urls], []
    try:
        for server in servers:
            abouts.append(json.loads(server.ask("/about")))
            server.model = abouts[0]["digest"]
            found, wanted = (abouts[-1]["version"], abouts[-1]["digest"]), (minillm.__version__, server.model)
            if found != wanted:
                what = f"{' with the model '.join(found)}; wanted {' with the model '.join(wanted)} of {urls[0]}"
                raise ModelError(f"model.teacher.url={server.url}: is minillm {what}")
        teacher = ServedTeacher(servers, abouts[0], load(servers[0].ask("/head")))
    except Unanswered as error:
        raise ModelError(f"model.teacher.url: {error.signal}; start python -m minillm.serve, or mend it") from error
    return teacher, ServedTokenizer(**abouts[0]["tokenizer"])
