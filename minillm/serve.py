"""python -m minillm.serve teacher=DIR_OR_ID: serves a teacher to runs in other processes. See conf/serve.yaml.

Axes: B rows, S positions, H width, N positions whose states are requested.
"""

import hmac
import importlib.util
import json
import os
import re
import socket
import threading
from typing import TYPE_CHECKING, Literal

import hydra
from omegaconf import DictConfig
from safetensors import SafetensorError

from minillm.common import cli
from minillm.common.checks import value_problems
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError
from minillm.common.lazy import lazy
from minillm.common.machine import on_cuda
from minillm.common.secret import SERVE_TOKEN
from minillm.evaluation.job import plain_config
from minillm.models import Attention, Checkpoint, Dtype, choose_dtype, device_of

if TYPE_CHECKING:
    import torch
    from fastapi import FastAPI

    from minillm.models import LanguageModel, Pair
else:
    torch, served, safetensors = lazy("torch"), lazy("minillm.models.served"), lazy("safetensors.torch")

_KINDS = {
    "teacher": str, "adapter": str | None, "dtype": Dtype, "attention": Attention,
    "device": Literal["auto", "cpu", "cuda"], "host": str, "port": int, "max_tokens": int, "max_length": int,
}  # fmt: skip


@hydra.main(config_path="../conf", config_name="serve", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    plain = check_serving(cfg)
    cli.prepare()
    serve(plain)


def check_serving(cfg: DictConfig | dict) -> dict:
    """The settings as a plain dict. Raises ConfigError with every problem. Does not import torch."""
    plain, token = plain_config(cfg), os.environ.get(SERVE_TOKEN, "")
    problems = value_problems(plain, _KINDS, ("max_tokens", "max_length"))
    if not problems and plain["max_tokens"] < plain["max_length"]:
        problems.append(
            f"max_tokens={plain['max_tokens']}: wanted max_length={plain['max_length']} or more, a whole row"
        )
    if plain["teacher"] == "???":
        problems.append("teacher: wanted a directory, a hub id, a .gguf file or package:NAME")
    if isinstance(plain["port"], int) and not 0 <= plain["port"] < 2**16:
        problems.append(f"port={plain['port']}: wanted a number from 0 to 65535")
    if not (token or re.fullmatch(r"localhost|127(\.\d+){3}", str(plain["host"]))):
        problems.append(
            f"host={plain['host']}: others can reach it; wanted a password in the environment variable {SERVE_TOKEN}, "
            "or a loopback address such as 127.0.0.1"
        )
    if plain["device"] == "cuda" and not on_cuda("cuda"):
        problems.append("device=cuda: no GPU is seen here; use device=auto or cpu")
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        problems.append(f"needs {' and '.join(missing)}; `pip install -r requirements-serve.txt`")
    if problems:
        raise ConfigError(problems)
    return plain


def serve(plain: dict) -> None:
    """Load the teacher and answer requests until a signal comes.

    Raises:
        ConfigError, ModelError: the address cannot be used, or the teacher cannot be loaded (`Checkpoint.load`).
    """
    import uvicorn

    from minillm.models import LanguageModel, solo

    try:
        listening = socket.create_server((plain["host"], plain["port"]))
    except OSError as error:
        raise ConfigError(f"port={plain['port']}: {error.strerror or error}; choose another port or host") from error
    device = device_of(plain["device"])
    checkpoint = Checkpoint(plain["teacher"], adapter=plain["adapter"])
    network, tokenizer = checkpoint.load(choose_dtype(plain["dtype"], device), plain["attention"])
    pair = solo(network.to(device), tokenizer)
    model = LanguageModel(pair.student, pair.n_vocab).frozen()
    about = about_of(model, pair) | {name: plain[name] for name in ("max_tokens", "max_length")}
    say(f"Serving {checkpoint.name} ({about['digest']}) at http://{plain['host']}:{listening.getsockname()[1]}")
    app = app_of(model, about, os.environ.get(SERVE_TOKEN, ""))
    config = uvicorn.Config(app, log_level="warning", headers=[(served.MODEL, about["digest"])])
    uvicorn.Server(config).run(sockets=[listening])


def about_of(model: "LanguageModel", pair: "Pair") -> dict:
    """What a run must know about the model and the tokenizer of `pair`. `digest` is a hash of config, type and weights:
    models with the same digest give the same states, but for rounding."""
    import minillm
    from minillm.models.digest import model_digest

    network, tokenizer = model.network, pair.tokenizer
    tokens = {name: getattr(tokenizer, name) for name in ("eos_token", "eos_token_id", "chat_template")}
    config = json.loads(network.config.to_json_string(use_diff=False))
    about = {
        "version": minillm.__version__,
        "digest": model_digest(network),
        "dtype": str(network.dtype).removeprefix("torch."),
    }
    about |= {"config": config, "stops": network.generation_config.eos_token_id}
    return about | {"tokenizer": {"vocabulary": tokenizer.get_vocab(), **tokens}}


def app_of(model: "LanguageModel", about: dict, token: str) -> "FastAPI":
    """The server of a model: GET /about and /head, POST /states. It refuses requests without the `token`, and malformed
    ones, with a status of 4xx and one line of text."""
    from fastapi import Depends, FastAPI, HTTPException, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import PlainTextResponse
    from starlette.exceptions import HTTPException as AnyHTTPException

    one_at_a_time, limits = threading.Lock(), (about["max_tokens"], about["max_length"])
    largest = 16 * about["max_tokens"] + 2**16  # bytes: 8 for an id and 8 for a position, for each token

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(
                401, f"wrong password: wanted the server's {SERVE_TOKEN} in the environment of the run too"
            )

    app = FastAPI(dependencies=[Depends(check_token)], openapi_url=None)
    app.add_exception_handler(
        AnyHTTPException, lambda request, error: PlainTextResponse(f"{error.detail}\n", error.status_code)
    )

    @app.get("/about")
    def give_about() -> dict:
        return about

    @app.get("/head")
    def give_head() -> Response:
        weights = dict(model.network.get_output_embeddings().named_parameters())
        return Response(safetensors.save({name: each.detach().cpu().contiguous() for name, each in weights.items()}))

    @torch.no_grad()
    def compute(ids_BS: "torch.Tensor", state_N: "torch.Tensor") -> Response:
        with one_at_a_time:
            states_NH = model.states(ids_BS.to(model.device), state_N.to(model.device)).cpu()
        return Response(safetensors.save({"hidden_NH": states_NH}))

    @app.post("/states")
    async def give_states(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > largest:
                raise HTTPException(413, f"more than {largest} bytes: wanted at most max_tokens={limits[0]}")
        try:
            tensors = read_request(bytes(body), model.n_vocab, *limits)
            model.check_length(tensors[0].shape[1])
        except (ValueError, ModelError) as error:
            raise HTTPException(400, str(error)) from error
        return await run_in_threadpool(compute, *tensors)

    return app


def read_request(body: bytes, n_vocab: int, max_tokens: int, max_length: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """ids_BS and state_N of a request. Raises ValueError if it holds something else or exceeds the limits."""
    try:
        found = safetensors.load(body)
        ids_BS, state_N = found["ids_BS"], found["state_N"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError("a body that cannot be read: wanted ids_BS and state_N as safetensors") from error
    kinds = [(each.dtype, each.dim()) for each in (ids_BS, state_N)]
    if kinds != [(torch.int64, 2), (torch.int64, 1)] or not (ids_BS.numel() and len(state_N)):
        raise ValueError("wanted ids_BS, int64 with 2 dimensions, and state_N, int64 with 1, neither empty")
    n_tokens, n_columns = ids_BS.numel(), ids_BS.shape[1]
    if n_columns > max_length:
        raise ValueError(f"rows of {n_columns} tokens: wanted at most max_length={max_length}")
    if max(n_tokens, len(state_N)) > max_tokens:
        raise ValueError(f"{n_tokens} tokens, {len(state_N)} places: wanted at most max_tokens={max_tokens}")
    for name, each, end in (("ids_BS", ids_BS, n_vocab), ("state_N", state_N, n_tokens)):
        if each.min() < 0 or each.max() >= end:
            raise ValueError(f"{name} from {each.min()} to {each.max()}: wanted 0 to {end - 1}")
    return ids_BS, state_N


if __name__ == "__main__":
    cli.run(main, "serve")
