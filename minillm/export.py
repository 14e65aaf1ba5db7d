"""A run's checkpoint as a Hugging Face directory: `python -m minillm.export CHECKPOINT DIR`.

CHECKPOINT is a run directory (best.ckpt if it has one, else last.ckpt) or one of its checkpoints/*.ckpt. The run's
config.yaml says which model it is; run it from where train.py was run, so that paths in there mean the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from minillm.common import cli
from minillm.common.checks import collect
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check
from minillm.common.files import vacant
from minillm.common.hub import repository
from minillm.common.saved import damage, differences, load_saved
from minillm.common.secret import secret_problems
from minillm.common.stored import other_targets, read_config
from minillm.models import ModelPair, device_of

# All that an export constructs: a file on disk must not name code that is run.
_CLASSES = tuple(
    f"minillm.models.{name}"
    for name in ("ModelPair", "Checkpoint", "PrunedTeacher", "FromScratch", "Architecture", "Lora")
)


def export(
    checkpoint: Path, directory: Path, *, command: str = "", push_to_hub: str | None = None, private: bool = True,
    **terms: Any,
) -> None:  # fmt: skip
    """Write `directory`, and send it to the repository `push_to_hub` (owner/name) of the hub. `terms` of the card:
    license and language, see `card_text`.

    Raises:
        ConfigError: `directory` has something in it; `checkpoint` is not of a run, or its config.yaml is not right.
        ModelError: the file is not a checkpoint of train.py, or of another model. More: see `repository`.
    """
    check((vacant(directory), f"DIR={directory}: there is something already; wanted a new or an empty directory"))
    file, config = _locate(checkpoint)
    plain = read_config(config)
    groups = ("model", "run", "objective", "data")
    if missing := [each for each in groups if not isinstance(plain.get(each), dict)]:
        raise ConfigError(f"{config}: no group {missing[0]} inside; wanted the config.yaml of a run")
    problems, target = other_targets(plain["model"], _CLASSES, "model"), plain["model"].get("_target_")
    if not problems and target != _CLASSES[0]:
        problems = [f"model._target_={target!r}: wanted {_CLASSES[0]}"]
    settings: ModelPair | None = None if problems else collect(problems, "model", plain["model"])
    if problems:
        raise ConfigError([f"{config}: {problem}" for problem in problems])
    if wrong := damage(file):
        raise ModelError(f"{file}: not a checkpoint ({wrong}); give another of the run's checkpoints/*.ckpt")
    from minillm.models.export import export_student
    from minillm.train.card import card_text
    from minillm.train.student import StudentModule

    cli.prepare()
    saved = load_saved(file)
    figures, callbacks = _figures(file, saved)
    commands = [callbacks.get("RunRecord", {}).get("command"), command]
    against, place = callbacks.get("Validation", {}).get("rouge_against"), push_to_hub or directory.name
    card = card_text(plain, commands, figures=figures, against=against, weights=file.stem, place=place, **terms)
    send = push_to_hub and repository(push_to_hub, private=private)
    pair = settings.load_student(device_of("auto"))
    module = StudentModule(pair.student)
    if differing := differences(saved["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: not of the model that {config} describes: {differing}; give a checkpoint and the config.yaml of "
            "one run"
        )
    module.load_state_dict(saved["state_dict"])
    export_student(pair, directory, card=card)
    say(f"Wrote {directory}: the student of {file}" + (f", and {send(directory)}" if send else ""))


def _locate(checkpoint: Path) -> tuple[Path, Path]:
    """(checkpoint file, config.yaml)."""
    if checkpoint.is_dir():
        files = [checkpoint / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
        config, wanted = checkpoint / "config.yaml", "checkpoints/best.ckpt or checkpoints/last.ckpt inside"
    else:
        files, config = [checkpoint], checkpoint.absolute().parent.parent / "config.yaml"
        wanted = "such file; wanted a run directory or its checkpoints/*.ckpt"
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise ConfigError(f"CHECKPOINT={checkpoint}: no {wanted}")
    check((config.is_file(), f"CHECKPOINT={checkpoint}: no {config}, which says what model it is; put it there"))
    return file, config


def _figures(file: Path, saved: dict) -> tuple[dict[str, float], dict[str, dict]]:
    """Figures of the validation of these very weights, where last.ckpt remembers one, and what its callbacks saved."""
    last = file.with_name("last.ckpt")
    callbacks = (load_saved(last) if last.is_file() and last != file else saved).get("callbacks", {})
    best = (callbacks.get("Checkpoints") or {}).get("best") or {}
    newest = callbacks.get("Validation") or {}
    step = saved.get("minillm", {}).get("step", -1)
    if file.name == "best.ckpt":
        return best["figures"] if best.get("step") == step else {}, callbacks
    stages = newest.get("stages", {})
    if file.name == "start.ckpt":
        return stages.get("start", {}), callbacks
    newest_figures = stages.get("last", stages.get("end"))  # `end`: of an earlier version
    return newest_figures if newest.get("newest_step") == step else {}, callbacks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillm.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a run directory, or its checkpoints/*.ckpt"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="new, or empty")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="send DIR to this model repository, made if needed")
    parser.add_argument("--public", dest="private", action="store_false", help="a repository that is made is public")
    parser.add_argument("--license", metavar="ID", help="for the model card, such as apache-2.0")
    parser.add_argument("--language", metavar="CODE", nargs="+", help="for the model card, such as en")
    given = vars(parser.parse_args())
    command = " ".join(["python -m minillm.export", *sys.argv[1:]])
    if secrets := secret_problems({}, command):  # it goes to the model card
        raise ConfigError(secrets)
    paths = [given.pop(name).expanduser() for name in ("checkpoint", "directory")]
    export(*paths, command=command, **given)


if __name__ == "__main__":
    cli.run(main, "train")
