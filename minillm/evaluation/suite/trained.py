"""How the training run of a model wrote its prompts, compared with how the evaluation writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.common.changes import flat, within
from minillm.common.overrides import override
from minillm.common.read import read_settings

_KEYS = ("data.template", "data.system", "data.template_arguments", "data.bos", "data.date")
_ARGUMENTS = "data.template_arguments"


def template_notes(models: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    """One sentence for each model RUN/student whose RUN/config.yaml has other template keys than `data`, the group of
    the evaluation: what the run had, what the evaluation has, and what to type for the prompts of the training.

    A note and no refusal: the models of one suite may come from runs with different templates (a teacher and its
    students), and a person may want to know how a model answers in another one.
    """
    now, notes = flat({"data": data}), []
    for name in models:
        try:
            run = _settings_of_run(Path(name).expanduser())
        except ValueError:  # a damaged config.yaml: only the comparison is lost
            continue
        differing = [key for key in _KEYS if _value(run, key, _value(now, key)) != _value(now, key)]
        if None in (_value(run, "data.date"), _value(now, "data.date")):  # a template that asks for none
            differing = [key for key in differing if key != "data.date"]
        if differing:
            was, is_now = (", ".join(override(key, _value(of, key)) for key in differing) for of in (run, now))
            typed = " ".join(override(key, _value(run, key)) for key in differing)
            notes.append(
                f"{name} was trained with {was}, and its prompts are written with {is_now} here; for those of its "
                f"training give {typed}"
            )
    return notes


def _settings_of_run(model: Path) -> dict[str, Any]:
    """Flat settings of the run directory that the model lies in, as RUN/student or RUN/start/student; empty for models
    that lie elsewhere."""
    return next((found for folder in list(model.parents)[:2] if (found := read_settings(folder))), {})


def _value(settings: Mapping[str, Any], key: str, absent: Any = None) -> Any:
    """The value of a key in flat settings; the template's arguments as one mapping again. `absent` where an older run
    does not have the key."""
    below = {name.removeprefix(f"{key}."): value for name, value in settings.items() if within(name, (key,))}
    if key == _ARGUMENTS and key not in below and below:
        return below
    return settings.get(key, absent)
