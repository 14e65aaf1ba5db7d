"""May a run go on with these settings? What differs is said; what would change its numbers is refused."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minillm.config.changes import changes, flat, within
from minillm.data import Corpus, PromptSet
from minillm.errors import ConfigError, ModelError, check
from minillm.modules import StudentModule
from minillm.runs.saved import differences, load_saved
from minillm.terminal.console import say

DATA = "data.json"  # in the run directory


def compare_settings(run_dir: Path, plain: dict) -> None:
    """Compare the config.yaml of a run with the settings it is to go on with, and say every difference.

    Raises:
        ConfigError: every difference that would change the numbers; or config.yaml cannot be read.
    """
    file = run_dir / "config.yaml"
    try:
        before = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}), so that the settings "
            "cannot be compared; put it back, or choose another run.name"
        ) from error
    found = changes(flat(before), flat(plain))
    for change in found:
        if change.effect and not within(change.key, ("resume", "run")):
            say(f"{change}: {change.effect}")
    refused = [f"{each.key}={each.now!r}: the run was made with {each.was!r}" for each in found if not each.effect]
    if refused:
        advice = f"{run_dir}: going on would change the numbers; set it back, or choose another run.name"
        raise ConfigError([*refused, advice])


def data_digests(train: PromptSet, validation: PromptSet, corpus: Corpus | None) -> dict[str, str]:
    """What tells one content from another, as it is after filtering and tokenisation."""
    found = {"data.train_file": train.digest(), "data.val_file": validation.digest()}
    return found | ({} if corpus is None else {"data.corpus_file": corpus.digest()})


def compare_data(run_dir: Path, digests: dict[str, str]) -> None:
    """Raises ConfigError: a file that the run was begun with holds other rows now."""
    file = run_dir / DATA
    before = json.loads(file.read_text()) if file.exists() else {}
    check(
        *(
            (
                before.get(key, digest) == digest,
                f"{key}: other rows than the run in {run_dir} was begun with; put them back",
            )
            for key, digest in digests.items()
        )
    )


def check_weights(file: Path, module: StudentModule) -> None:
    """Raises ModelError: the checkpoint is of another model or vocabulary."""
    if differing := differences(load_saved(file)["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: of another model or vocabulary than model.student: {differing}; set model back, or choose "
            "another run.name"
        )
