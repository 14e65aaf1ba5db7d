"""A trained PEFT adapter, put on the base it belongs to and merged into it."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedModel

from minillm.common.errors import ConfigError, ModelError


def merge_adapter(network: PreTrainedModel, adapter: str, source: str, *, merge: bool = True) -> PreTrainedModel:
    """`network`, loaded from `source`, with the adapter merged in and all weights trainable; or, with `merge` False,
    with the adapter beside weights that a sum would round, as quantised ones.

    Raises:
        ConfigError: no adapter there. ModelError: it is of another base, by name or by its weights.
    """
    directory = Path(adapter).expanduser()
    if not (directory / "adapter_config.json").is_file():
        raise ConfigError(
            f"adapter={adapter}: no adapter_config.json there; wanted a PEFT directory (`hf download` brings one)"
        )
    stated = PeftConfig.from_pretrained(directory).base_model_name_or_path
    if stated and not same_base(stated, source):
        raise ModelError(
            f"adapter {adapter} is of another base: its adapter_config.json names {stated!r}, and it is put on "
            f"{source!r}; change one of the two sources, or base_model_name_or_path there if both are the same model"
        )
    try:
        given = load_peft_weights(str(directory), device="cpu")
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"adapter {adapter}: its pickled weights hold more than tensors and are refused; give safetensors"
        ) from error
    try:
        with warnings.catch_warnings():  # of names deprecated in transformers, and of what is an error below
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(network, directory)
    except (RuntimeError, ValueError) as error:  # other sizes; modules that are not there
        first = str(error).strip().splitlines()[:2]
        raise ModelError(f"adapter {adapter} (of {stated!r}) does not fit {source!r}: {' '.join(first)}") from error
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if differing := sorted(given.keys() ^ expected.keys()):
        raise ModelError(
            f"adapter {adapter} (of {stated!r}) does not fit {source!r}: {len(differing)} of its weights have no "
            f"counterpart, the first is {differing[0]}"
        )
    if not merge:
        return adapted.get_base_model()
    return adapted.merge_and_unload().requires_grad_(True)


def same_base(stated: str, source: str) -> bool:
    """Two names of one base: equal but for a revision, the same directory, or a hub id and a local copy that ends in
    its name."""
    names = [name.split("@")[0].rstrip("/") for name in (stated, source)]
    if names[0] == names[1]:
        return True
    paths = [Path(name).expanduser() for name in names]
    local = [
        path.exists() or path.is_absolute() or name.count("/") > 1 for path, name in zip(paths, names, strict=True)
    ]
    if all(local):
        return paths[0].resolve() == paths[1].resolve()
    if not any(local):
        return False
    hub = names[local.index(False)]
    return hub.count("/") == 1 and paths[local.index(True)].name == hub.split("/")[1]
