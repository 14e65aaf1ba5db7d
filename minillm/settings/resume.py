"""May a run go on with these settings? What differs is said; what would change its numbers is refused."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minillm.config.changes import changes, flat, within
from minillm.data import Corpus, PromptSet
from minillm.errors import ConfigError, ModelError, check, first_line
from minillm.models import ModelPair
from minillm.modules import StudentModule
from minillm.runs.saved import differences, load_saved
from minillm.terminal.console import say

DATA, NUMBERS = "data.json", "numbers.json"  # in the run directory


def numbers_of(model: ModelPair, device: torch.device, precision: str) -> dict[str, str]:
    """What `auto` came to on this machine, by the key that says it."""
    dtypes = [f"{side} {str(each).removeprefix('torch.')}" for side, each in model.dtypes(device).items()]
    return {"trainer.precision": precision, "model.dtype": ", ".join(dtypes)}


def compare_settings(run_dir: Path, plain: dict, numbers: dict[str, str]) -> None:
    """Compare the config.yaml of a run with the settings it is to go on with, and say every difference; what may be
    `auto` there is compared as what it came to, see `numbers_of`.

    Raises:
        ConfigError: every difference that would change the numbers; or config.yaml cannot be read.
    """
    file = run_dir / "config.yaml"
    try:
        before = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({first_line(error)}), so that the settings "
            "cannot be compared; put it back, or choose another run.name"
        ) from error
    made = _json(run_dir / NUMBERS)
    found = [each for each in changes(flat(before), flat(plain)) if each.key not in made]
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


def data_digests(train: PromptSet, validation: PromptSet, corpus: Corpus | None) -> dict[str, str]:
    """What tells one content from another, as it is after filtering and tokenisation."""
    found = {"data.train_file": train.digest(), "data.val_file": validation.digest()}
    return found | ({} if corpus is None else {"data.corpus_file": corpus.digest()})


def compare_data(run_dir: Path, digests: dict[str, str]) -> None:
    """Raises ConfigError: a file that the run was begun with holds other rows now."""
    before = _json(run_dir / DATA)
    check(
        *(
            (
                before.get(key, digest) == digest,
                f"{key}: other rows than the run in {run_dir} was begun with; put them back",
            )
            for key, digest in digests.items()
        )
    )


def _json(file: Path) -> dict[str, str]:
    """Empty where it is not there, as in runs of older versions."""
    return json.loads(file.read_text()) if file.exists() else {}


def check_weights(file: Path, module: StudentModule) -> None:
    """Raises ModelError: the checkpoint is of another model or vocabulary."""
    if differing := differences(load_saved(file)["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: of another model or vocabulary than model.student: {differing}; set model back, or choose "
            "another run.name"
        )
