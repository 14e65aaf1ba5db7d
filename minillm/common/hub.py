"""The Hugging Face hub: is it within reach, what is a name of it, its model cards, and what is sent to it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from minillm.common.errors import StorageError, check, first_line


@functools.cache
def notice_offline() -> None:
    """Try the hub once, for at most 5 s. If it cannot be reached, this process goes on as with HF_HUB_OFFLINE=1: what
    is in the cache is used, all else fails at once. Otherwise each file costs five retries, 48 s together."""
    from huggingface_hub import constants, get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:  # of whichever HTTP client the installed version uses
            constants.HF_HUB_OFFLINE = True


def hub_id(source: str | None, kind: Literal["model", "dataset"] = "model") -> str | None:
    """`owner/name` of `owner/name@revision` or, of a data set, `owner/name:split`; an old model has a `name` alone.
    None for what is on this disk, inside a package or built in."""
    name = str(source).partition("@" if kind == "model" else ":")[0]
    form = r"[\w-][\w.-]*/[\w-][\w.-]*" if kind == "dataset" else r"([\w-][\w.-]*/)?[\w-][\w.-]*"
    a_file = Path(name).suffix.lower() in (".gguf", ".jsonl", ".json", ".parquet", ".txt") or Path(name).exists()
    return name if source and re.fullmatch(form, name) and not a_file else None


def card_of(source: str | None) -> dict[str, Any]:
    """The head of the model card of a directory or hub id; nothing where there is none that can be read."""
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        file = Path(str(source)).expanduser() / "README.md"
        if name := hub_id(source):
            notice_offline()
            file = hf_hub_download(name, "README.md", revision=source.partition("@")[2] or None)
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # no card, no network, or any text in its place: no run ends for it
        return {}


def repository(name: str, *, private: bool) -> Callable[[Path], str]:
    """Make the model repository `owner/name`, unless it is there, before long work. What is returned sends a directory
    there in one commit and gives the address.

    Raises:
        ConfigError: the name, or no token. StorageError: the hub cannot be reached or refuses; also later.
    """
    from huggingface_hub import HfApi, constants, get_token

    check(
        (bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)), f"push_to_hub={name!r}: wanted OWNER/NAME on the hub"),
        (not constants.HF_HUB_OFFLINE, f"push_to_hub={name}: HF_HUB_OFFLINE is set; unset it, or export only"),
        (get_token() is not None, f"push_to_hub={name}: no token; run `hf auth login`, or set HF_TOKEN"),
    )

    def ask(method: str, **given: Any) -> None:
        try:
            getattr(HfApi(endpoint=constants.ENDPOINT), method)(repo_id=name, **given)
        except Exception as error:  # of whichever HTTP client the installed version uses
            status = getattr(getattr(error, "response", None), "status_code", None)
            why = f"the hub answers {status}" if status else f"{constants.ENDPOINT} gives no usable answer"
            todo = "; wanted a token that may write there (`hf auth login`, HF_TOKEN)" if status in (401, 403) else ""
            raise StorageError(f"push_to_hub={name}: {why}{todo} ({first_line(error)})") from error

    def send(directory: Path) -> str:
        ask("upload_folder", folder_path=directory, commit_message="A student distilled by MiniLLM")
        return f"{constants.ENDPOINT}/{name}"

    ask("create_repo", private=private, exist_ok=True)
    return send
