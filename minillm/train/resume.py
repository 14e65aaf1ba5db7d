"""May a run go on with these settings? Every difference is said; what would change its numbers is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import minillm
from minillm.common.changes import ABSENT, changes, flat, within
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check
from minillm.common.overrides import override
from minillm.common.read import read_json
from minillm.common.saved import checkpoints_in, differences, load_saved, newest_good
from minillm.common.stored import read_config
from minillm.data import Corpus, PromptSet
from minillm.models import ModelPair
from minillm.train.student import StudentModule

BEGUN = "begun.json"  # in the run directory: its version, and what `auto` and the data were as it began
_BACK = "put it back, or choose another run.name"
_TEMPLATE = "data.template"


def numbers_of(model: ModelPair, device: torch.device, precision: str) -> dict[str, str]:
    """What `auto` is on this machine, by the key that says it."""
    dtypes = [f"{side} {str(each).removeprefix('torch.')}" for side, each in model.dtypes(device).items()]
    return {"trainer.precision": precision, "model.dtype": ", ".join(dtypes)}


def begun(run_dir: Path) -> dict[str, Any]:
    """What the run wrote as it began. Raises ConfigError: it is damaged."""
    return read_json(run_dir / BEGUN, _BACK) or {}


def go_on_from(run_dir: Path, plain: dict, numbers: dict[str, str]) -> Path | None:
    """The newest good checkpoint of a run that may go on; None where there is none. By one rank: damaged ones are put
    out of the way."""
    folder = run_dir / "checkpoints"
    if not checkpoints_in(folder):
        return None
    compare_settings(run_dir, plain, numbers)
    file = newest_good(folder)
    say(f"The run goes on from {file}")
    return file


def compare_settings(run_dir: Path, plain: dict, numbers: dict[str, str]) -> None:
    """Compare the config.yaml of a run with the settings it is to go on with; what may be `auto` there is compared by
    `numbers_of`.

    Raises:
        ConfigError: every difference that would change the numbers; classes outside of minillm that these settings do
            not name again; the run is of another version; config.yaml cannot be read.
    """
    try:
        before, now = flat(read_config(run_dir / "config.yaml")), flat(plain)
    except ConfigError as error:
        raise ConfigError(f"{error}; the settings cannot be compared: {_BACK}") from error
    known = begun(run_dir)
    made = known.get("numbers", {})
    found = [each for each in changes(before, now) if each.key not in made]
    code = ("_target_", "reward.function")
    classes = [each for each in found if each.key.endswith(code) and each.was not in (None, ABSENT)]
    check(
        *(
            (
                str(each.was).startswith("minillm."),
                f"{each.key}: the run was made with {each.was!r}, which is not of minillm. A run's own file is not "
                f"asked for code: name it again, {'' if each.key in now else '+'}{override(each.key, each.was)}, "
                "or choose another run.name",
            )
            for each in classes
        )
    )
    renamed = [*classes, *(each for each in found if not each.effect and ABSENT in (each.was, each.now))]
    if renamed and known.get("version") != minillm.__version__:
        raise ConfigError(
            f"{run_dir} was made by another version of minillm ({known.get('version', 'an older one')}; this is "
            f"{minillm.__version__}), with other names of its parts: {renamed[0]}. Go on with that version, or choose "
            f"another run.name to begin anew; python -m minillm.export {run_dir} DIR opens its checkpoints"
        )
    for change in found:
        if change.effect and not within(change.key, ("resume", "run")):
            say(f"{change}: {change.effect}")
    back = f"going on would change the numbers; {_BACK}"
    refused = [f"{each.key}={each.now!r}: the run was made with {each.was!r}" for each in found if not each.effect]
    refused += [
        f"{key}: is {numbers[key]} on this machine with these settings, the run was made with {was}"
        for key, was in made.items()
        if numbers.get(key, was) != was
    ]
    check(*((False, f"{each}; {back}") for each in refused))


def data_digests(
    train: PromptSet, validation: PromptSet, corpus: Corpus | None, chat_template: object
) -> dict[str, str]:
    """What tells one content from another, as it is after filtering and tokenisation; and the tokenizer's template."""
    template = hashlib.sha256(json.dumps(chat_template, sort_keys=True).encode()).hexdigest()[:24]
    found = {"data.train_file": train.digest(), "data.val_file": validation.digest(), _TEMPLATE: template}
    return found | ({} if corpus is None else {"data.corpus_file": corpus.digest()})


def compare_data(run_dir: Path, digests: dict[str, str]) -> None:
    """Raises ConfigError: a file that the run was begun with holds other rows now, another template writes them, or the
    student at the start or a served teacher has other weights."""
    before = begun(run_dir).get("data", {})
    other = [key for key, digest in digests.items() if before.get(key, digest) != digest]
    what = "another chat template than" if _TEMPLATE in other else "other content than"
    if other != [_TEMPLATE]:  # a template that writes no prompt
        check(*((False, f"{key}: {what} the run in {run_dir} was begun with; {_BACK}") for key in other))


def check_weights(file: Path, module: StudentModule) -> None:
    """Raises ModelError: the checkpoint is of another model or vocabulary."""
    if differing := differences(load_saved(file)["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: of another model or vocabulary than model.student: {differing}; set model back, or choose "
            "another run.name"
        )
