"""What a stage's result was made with, against what the same stage is set to now.

A command leaves its settings beside its result: train.py in config.yaml, minillm.generate and evaluate.py in
settings.json. They say more than the words of the command: a yaml of conf/ may have been edited since.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minillm.common import read
from minillm.common.changes import FIGURES, LONGER, Change, changes, flat, within
from minillm.common.saved import checkpoints_in
from minillm.evaluation.suite.grown import refused
from minillm.evaluation.suite.settings import read_settings
from minillm.models import choose_dtype, device_of

_EXPORTED = (*FIGURES, "callbacks.record.export")  # nothing to a run that goes on, but another student


def differing(config: str, settings: Mapping, folder: Path, *, finished: bool) -> list[str]:
    """What of the settings differs and would make another result; of an evaluation how it measures, since what it
    measures may grow.

    Args:
        config: train, generate or evaluate. settings: as the command would compose them now. folder: the stage's.
            finished: its result is there; else it was cut off.

    Raises:
        ConfigError, ValueError: the settings there cannot be read.
    """
    if config == "train":
        before = read.read_settings(folder)
        if before is None or not (finished or checkpoints_in(folder / "checkpoints")):
            return []  # it begins anew
        return [str(each) for each in changes(before, flat(settings)) if _matters(each, finished)]
    before = read_settings(folder) if config == "evaluate" else read.read_job_settings(folder)
    if before is None:
        return []
    now = {key: settings[key] for key in before if key in settings}
    if "dtype" in now:
        now["dtype"] = str(choose_dtype(now["dtype"], device_of(settings["device"]))).removeprefix("torch.")
    if config == "evaluate":
        return refused(before, now | {"content": {}})  # contents are the chain's to compare
    return [str(each) for each in changes(flat({key: before[key] for key in now}), flat(now))]


def _matters(change: Change, finished: bool) -> bool:
    if not finished:
        return change.effect is None
    return change.effect in (None, LONGER) or within(change.key, _EXPORTED)
