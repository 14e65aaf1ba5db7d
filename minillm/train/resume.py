"""May a run go on with these settings? What differs is said; what would change its numbers is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from minillm.common.changes import ABSENT, Change, changes, flat, within
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check
from minillm.common.overrides import override
from minillm.common.read import read_json
from minillm.common.saved import differences, load_saved
from minillm.common.stored import read_config
from minillm.data import Corpus, PromptSet
from minillm.models import ModelPair
from minillm.parallel.gradients import DECAYED
from minillm.train.student import StudentModule

BACK = "put it back, or choose another run.name"
DATA, NUMBERS = "data.json", "numbers.json"  # in the run directory
_TEMPLATE = "data.template"


def numbers_of(model: ModelPair, device: torch.device, precision: str) -> dict[str, str]:
    """What `auto` came to on this machine, by the key that says it."""
    dtypes = [f"{side} {str(each).removeprefix('torch.')}" for side, each in model.dtypes(device).items()]
    return {"trainer.precision": precision, "model.dtype": ", ".join(dtypes)}


def compare_settings(run_dir: Path, plain: dict, numbers: dict[str, str]) -> None:
    """Compare the config.yaml of a run with the settings it is to go on with, and say every difference; what may be
    `auto` there is compared as what it came to, see `numbers_of`.

    Raises:
        ConfigError: every difference that would change the numbers, every class of the run outside of minillm that
            these settings do not name again; or config.yaml cannot be read.
    """
    try:
        before, now = flat(read_config(run_dir / "config.yaml")), flat(plain)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; the settings cannot be compared: put it back, or choose another run.name"
        ) from error
    made = read_json(run_dir / NUMBERS, BACK) or {}
    found = [each for each in changes(before, now) if each.key not in made]
    check(
        *(
            (
                not _own_class(each),
                f"{each.key}: the run was made with {each.was!r}, which is not of minillm. A run's own file is not "
                f"asked for code: name it again, {'' if each.key in now else '+'}{override(each.key, each.was)}, "
                "or choose another run.name",
            )
            for each in found
        )
    )
    for change in found:
        if change.effect and not within(change.key, ("resume", "run")):
            say(f"{change}: {change.effect}")
    refused = [f"{each.key}={each.now!r}: the run was made with {each.was!r}" for each in found if not each.effect]
    refused += [
        f"{key}: comes to {numbers[key]} on this machine with these settings, the run was made with {was}"
        for key, was in made.items()
        if numbers.get(key, was) != was
    ]
    if refused:
        back = "it" if len(refused) == 1 else "these"
        refused[-1] += f"; going on would change the numbers of {run_dir}: set {back} back, or choose another run.name"
        raise ConfigError(refused)


def _own_class(change: Change) -> bool:
    """Was it a class outside of minillm?"""
    is_class = change.key.rpartition(".")[2] == "_target_" and change.was not in (None, ABSENT)
    return is_class and not str(change.was).startswith("minillm.")


def data_digests(
    train: PromptSet, validation: PromptSet, corpus: Corpus | None, chat_template: object
) -> dict[str, str]:
    """What tells one content from another, as it is after filtering and tokenisation; and the tokenizer's template."""
    template = hashlib.sha256(json.dumps(chat_template, sort_keys=True).encode()).hexdigest()[:24]
    found = {"data.train_file": train.digest(), "data.val_file": validation.digest(), _TEMPLATE: template}
    return found | ({} if corpus is None else {"data.corpus_file": corpus.digest()})


def compare_data(run_dir: Path, digests: dict[str, str]) -> None:
    """Raises ConfigError: a file that the run was begun with holds other rows now, or another template writes them."""
    before = read_json(run_dir / DATA, BACK) or {}
    other = {key for key, digest in digests.items() if before.get(key, digest) != digest}
    if _TEMPLATE in other and len(other) > 1:
        raise ConfigError(
            f"data.template: the tokenizer has another chat template than when the run in {run_dir} was begun, so that "
            "its prompts differ; put the template back, or choose another run.name"
        )
    check(
        *(
            (
                key not in other,
                f"{key}: other rows than the run in {run_dir} was begun with; put them back",
            )
            for key in digests
            if key != _TEMPLATE
        )
    )


def check_weights(file: Path, module: StudentModule) -> None:
    """Raises ModelError: the checkpoint is of another model or vocabulary, or of an older version's optimizer."""
    saved = load_saved(file)
    if any(DECAYED not in group for state in saved.get("optimizer_states", ()) for group in state["param_groups"]):
        raise ModelError(
            f"{file}: made by an older version, whose optimizer decays biases and norms too; go on with that version, "
            "or choose another run.name to begin anew"
        )
    if differing := differences(saved["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: of another model or vocabulary than model.student: {differing}; set model back, or choose "
            "another run.name"
        )
