"""A run's checkpoint as a Hugging Face directory: `python -m minillm.export CHECKPOINT DIR`.

CHECKPOINT is a run directory (best.ckpt if it has one, else last.ckpt) or one of its checkpoints/*.ckpt. The run's
config.yaml says which model it is; run it from where train.py was run, so that paths in there mean the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minillm.common import cli
from minillm.common.checks import collect
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check
from minillm.common.files import vacant
from minillm.common.saved import damage, differences, load_saved
from minillm.common.secret import secret_problems
from minillm.common.stored import other_targets, read_config
from minillm.models import ModelPair, device_of
from minillm.train.settings import made_by

# All that an export constructs: a file on disk must not name code that is run.
_CLASSES = tuple(
    f"minillm.models.{name}"
    for name in ("ModelPair", "Checkpoint", "PrunedTeacher", "FromScratch", "Architecture", "Lora")
)


def export(checkpoint: Path, directory: Path, *, command: str = "") -> None:
    """Write `directory`.

    Raises:
        ConfigError: `directory` has something in it; `checkpoint` is not of a run, or its config.yaml is not right.
        ModelError: the file is not a checkpoint of train.py, or of another model.
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
    from minillm.train.student import StudentModule

    cli.prepare()
    saved = load_saved(file)
    pair = settings.load_student(device_of("auto"))
    module = StudentModule(pair.student)
    if differing := differences(saved["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: not of the model that {config} describes: {differing}; give a checkpoint and the config.yaml of "
            "one run"
        )
    module.load_state_dict(saved["state_dict"])
    card = {"name": plain["run"].get("name"), "made_by": made_by(plain), "command": command, "weights": file.stem}
    export_student(pair, directory, card=card, figures=_figures(file, saved))
    say(f"Wrote {directory}: the student of {file}. To the hub: hf upload --private OWNER/NAME {directory}")


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


def _figures(file: Path, saved: dict) -> dict[str, float]:
    """Of the validation of these very weights, where last.ckpt remembers one."""
    last = file.with_name("last.ckpt")
    callbacks = (load_saved(last) if last.is_file() and last != file else saved).get("callbacks", {})
    best = (callbacks.get("Checkpoints") or {}).get("best") or {}
    newest = callbacks.get("Validation") or {}
    step = saved.get("minillm", {}).get("step", -1)
    if file.name == "best.ckpt":
        return best["figures"] if best.get("step") == step else {}
    stages = newest.get("stages", {})
    if file.name == "start.ckpt":
        return stages.get("start", {})
    newest_figures = stages.get("last", stages.get("end"))  # `end`: of an earlier version
    return newest_figures if newest.get("newest_step") == step else {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minillm.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a run directory, or its checkpoints/*.ckpt"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="new, or empty")
    given = parser.parse_args()
    command = " ".join(["python -m minillm.export", *sys.argv[1:]])
    if secrets := secret_problems({}, command):  # it goes to the model card
        raise ConfigError(secrets)
    export(given.checkpoint.expanduser(), given.directory.expanduser(), command=command)


if __name__ == "__main__":
    cli.run(main, "train")
