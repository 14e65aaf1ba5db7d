"""A teacher on a vLLM server: at each token its k most probable tokens, and the answer's own one, with log-probs.

Axes: B rows, S positions, N positions that are asked for, K listed tokens, V shared vocabulary.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.common.errors import ModelError, Unanswered
from minillm.models.language_model import LanguageModel
from minillm.models.served import Server

_LEAST = 1e-6  # of the mass of all tokens that are not listed: log-probs in float32 are no closer
_PROBE, _SLICE = 32, 4096  # tokens of the first request; ids whose texts are compared at a time


class VllmServer(Server):
    """`model` is the name under which the server has its model, `max_length` what its rows can hold."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._session.headers["Content-Type"] = "application/json"
        try:
            about = json.loads(self.ask("/v1/models"))["data"][0]  # adapters are listed after it
        except Unanswered as error:
            raise ModelError(f"{self.key}: {error.signal}; start a vLLM server (docs/serving.md)") from error
        self.model, self.max_length = about["id"], about["max_model_len"]

    def check(self, answer: requests.Response) -> None:
        if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
            raise ModelError(f"{self.key}={answer.url}: status {answer.status_code}: {answer.text.strip()[:500]}")

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        return json.loads(self.ask(path, json.dumps(body).encode()))

    def complete(self, prompts: list[list[int]], **how: Any) -> list[dict[str, Any]]:
        """One completion of each prompt; the model's generation config changes nothing."""
        plain = dict(top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
        found = self.post("/v1/completions", model=self.model, prompt=prompts, **plain, **how)["choices"]
        return sorted(found, key=lambda choice: choice["index"])

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ModelError: an id stands for another token there."""
        for first in range(0, len(tokenizer), _SLICE):
            ids = list(range(first, min(first + _SLICE, len(tokenizer))))
            ours, theirs = tokenizer.decode(ids), self.post("/detokenize", model=self.model, tokens=ids)["prompt"]
            if ours != theirs:
                at = next(n for n in range(max(map(len, (ours, theirs)))) if ours[: n + 1] != theirs[: n + 1])
                texts = f"{theirs[at : at + 20]!r}, {tokenizer.name_or_path} {ours[at : at + 20]!r}"
                where = f"{self.key}={self.url}: {self.model} has another vocabulary"
                raise ModelError(f"{where}: of ids {first} to {ids[-1]} it makes {texts}; wanted one family")


@dataclass(frozen=True)
class ListedHead:
    """In the place of a `Head`: makes log-probs [..., V] of lists [..., 2 K], of ids (-1 for none) and then of their
    log-probs, the largest first, the first `k` of them the most probable tokens. The tokens that are not listed share
    the rest of the mass evenly: their sum is right, each of them is not."""

    n_vocab: int
    k: int

    @property
    def logit_bytes(self) -> int:
        return 4 * self.n_vocab

    def input_type(self, lists: Tensor) -> torch.dtype:
        return lists.dtype  # ids are not rounded to a half type

    def to(self, dtype: torch.dtype) -> ListedHead:
        return self

    def __call__(self, lists: Tensor) -> Tensor:
        ids, logprobs = lists.chunk(2, dim=-1)
        known = (ids >= 0) & (ids < self.n_vocab)
        mass = logprobs.double().exp().sum(-1, keepdim=True)
        n_others = (self.n_vocab - known.sum(-1, keepdim=True)).clamp(min=1)
        rest = torch.log1p(-mass.clamp(max=1 - _LEAST)) - n_others.log()
        if self.k:  # a token that is not listed is no more probable
            rest = rest.minimum(logprobs[..., self.k - 1 : self.k])
        # A column more for the ids that are beyond the shared rows.
        whole = rest.to(lists.dtype).expand(*rest.shape[:-1], self.n_vocab + 1)
        columns = torch.where(known, ids, self.n_vocab).long()
        return whole.scatter(-1, columns, logprobs)[..., : self.n_vocab]


class VllmTeacher(LanguageModel):
    """Scores answers by one or several vLLM servers of the same model, which divide the rows among them. `k` is the
    number of tokens to list, see `Objective.teacher_tokens`. `states` are lists, see `ListedHead`. `network` has the
    shapes of the model, and no weights."""

    served, exact = True, False

    def __init__(self, servers: list[VllmServer], network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        """Raises ModelError: a server has another model than the first one, or another vocabulary."""
        super().__init__(network)
        self.servers, self.k, self.digest = servers, 0, servers[0].model
        self.max_length = min(server.max_length for server in servers) - 1  # vLLM draws a token at least
        for server in servers:
            if server.model != self.digest:
                raise ModelError(f"{server.key}={server.url}: serves {server.model}; wanted {self.digest}")
            server.check_vocabulary(tokenizer)
        self.frozen()

    def to(self, device: torch.device) -> None:
        """Nothing of it is here."""

    def head(self, temperature: float = 1.0) -> ListedHead:
        if temperature != 1:
            raise ModelError(f"model.teacher.protocol=vllm: log-probs are of temperature 1, wanted {temperature}")
        return ListedHead(self.n_vocab, self.k)

    def hidden(self, ids_BS: Tensor, cache=None) -> Tensor:
        raise ModelError("model.teacher.protocol=vllm: such a teacher scores answers and writes none")

    def states(self, ids_BS: Tensor, state_N: Tensor, token_N: Tensor | None = None) -> Tensor:
        """[N, 2 (k + 1)]: lists of the tokens that may follow at these places of [B * S], `token_N` among them. Raises:
        see `Server.ask`."""
        (_, width), n_servers = ids_BS.shape, len(self.servers)
        places: dict[int, list[int]] = {}
        ends: dict[int, int] = {}
        for place, token in zip(state_N.tolist(), token_N.tolist(), strict=True):
            places.setdefault(place // width, []).append(place % width)
            ends[place // width] = token
        rows = [(*ids_BS[row, : places[row][-1] + 1].tolist(), ends[row]) for row in places]

        def ask(n: int) -> list[dict[str, Any]]:
            mine = rows[n::n_servers]
            return self.servers[n].complete(mine, max_tokens=1, temperature=1, prompt_logprobs=self.k) if mine else []

        with ThreadPoolExecutor(n_servers) as threads:
            asked = list(threads.map(ask, range(n_servers)))
        lists = [
            _listed(asked[n % n_servers][n // n_servers]["prompt_logprobs"][place + 1], self.k)
            for n, row in enumerate(places)
            for place in places[row]
        ]
        return torch.tensor(lists, device=ids_BS.device)

    @torch.no_grad()
    def list_tokens(self, k: int) -> None:
        """From now on k at each token. Raises ModelError: a server does not list so many, or no log-probs."""
        self.k, size = max(1, k), self.n_vocab
        length = min(_PROBE, self.max_length)
        ids_BS = (torch.arange(len(self.servers) * length) * 7 + 1).remainder(size).view(-1, length)
        state_N = torch.arange(ids_BS.numel()).view_as(ids_BS)[:, :-1].flatten()
        lists_NK = self.states(ids_BS, state_N, ids_BS[:, 1:].flatten())
        mass_N = lists_NK[:, self.k + 1 : 2 * self.k + 1].exp().sum(-1)
        least, found = min(self.k, size) / size, f"{mass_N.min():.3g} to {mass_N.max():.3g}"
        if not ((mass_N > 0.99 * least) & (mass_N < 1.001)).all():
            raise ModelError(
                f"model.teacher.url: {self.digest} sends no log-probs: its {self.k} largest probabilities add up to "
                f"{found}, wanted {least:.2g} to 1; start it with --logprobs-mode raw_logprobs"
            )
        self.k = k


def _listed(entry: dict[str, dict[str, Any]], k: int) -> list[float]:
    """Of vLLM's entry for a token: {id: {"logprob": ...}}, the k most probable ones and the token itself."""
    found = sorted(((each["logprob"], int(token)) for token, each in entry.items()), reverse=True)[: k + 1]
    found += [(-math.inf, -1)] * (k + 1 - len(found))
    return [float(token) for _, token in found] + [logprob for logprob, _ in found]
