"""A run's checkpoint as a Hugging Face directory: `python -m minillm.export CHECKPOINT DIR [--push owner/name]`.

CHECKPOINT is a run directory (best.ckpt if it has one, else last.ckpt) or one of its checkpoints/*.ckpt. The run's
config.yaml says which model it is; run it from where train.py was run, so that paths in there mean the same.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from minillm.common import cli
from minillm.common.checks import collect
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check, first_line
from minillm.common.folders import vacant
from minillm.common.saved import damage, differences, load_saved
from minillm.common.stored import other_targets, read_config
from minillm.models import ModelPair, device_of
from minillm.models.export import export_student
from minillm.train.callbacks import Checkpoints, Validation
from minillm.train.settings import made_by
from minillm.train.student import StudentModule

# All that an export constructs: a file on disk must not name code that is run.
_CLASSES = tuple(
    f"minillm.models.{name}"
    for name in ("ModelPair", "Checkpoint", "PrunedTeacher", "FromScratch", "Architecture", "Lora")
)


def export(checkpoint: Path, directory: Path, *, push: str | None = None, command: str = "") -> None:
    """Write `directory` and, where asked, upload it to the hub (a repository that is not there yet is made private).

    Raises:
        ConfigError: `directory` has something in it; `checkpoint` is not of a run, or its config.yaml is not right.
        ModelError: the file is not a checkpoint of train.py, or of another model; or the hub refuses it.
    """
    check(
        (
            vacant(directory),
            f"DIR={directory}: there is something already; wanted a new or an empty directory",
        ),
        (
            push is None or re.fullmatch(r"[\w.-]+/[\w.-]+", push),
            f"--push {push}: wanted the name of a hub repository, owner/name",
        ),
    )
    file, config = _locate(checkpoint)
    plain = _settings(config)
    if wrong := damage(file):
        raise ModelError(f"{file}: not a checkpoint ({wrong}); give another of the run's checkpoints/*.ckpt")
    saved = load_saved(file)
    problems: list[str] = []
    settings: ModelPair | None = collect(problems, "model", plain["model"])
    if problems:
        raise ConfigError([f"{config}: {problem}" for problem in problems])
    pair = settings.load_student(device_of("auto"))
    module = StudentModule(pair.student)
    if differing := differences(saved["state_dict"], module.state_dict()):
        raise ModelError(
            f"{file}: not of the model that {config} describes: {differing}; give a checkpoint and the config.yaml of "
            "one run"
        )
    module.load_state_dict(saved["state_dict"])
    card = {"name": plain["run"]["name"], "made_by": made_by(plain), "command": command, "weights": file.stem}
    export_student(pair, directory, card=card, figures=_figures(file, saved))
    say(f"Wrote {directory}: the student of {file}")
    if push is not None:
        say(f"Pushed to {_push(directory, push)}")


def _locate(checkpoint: Path) -> tuple[Path, Path]:
    """(checkpoint file, config.yaml)."""
    if not checkpoint.exists():
        raise ConfigError(f"CHECKPOINT={checkpoint}: nothing there; wanted a run directory or its checkpoints/*.ckpt")
    if checkpoint.is_dir():
        run_dir = checkpoint
        files = [run_dir / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
        file = next((each for each in files if each.is_file()), None)
        if file is None:
            raise ConfigError(
                f"CHECKPOINT={checkpoint}: no checkpoints/best.ckpt or checkpoints/last.ckpt inside; wanted the "
                "directory of a run"
            )
    else:
        file, run_dir = checkpoint, checkpoint.absolute().parent.parent
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"CHECKPOINT={checkpoint}: no {config}, which says what model it is; put it there")
    return file, config


def _settings(config: Path) -> dict:
    """Raises ConfigError: not of a run, or its model names another class than ours, which is not even imported."""
    plain = read_config(config)
    groups = ("model", "run", "objective", "data")
    if missing := [group for group in groups if not isinstance(plain.get(group), dict)]:
        raise ConfigError(f"{config}: no group {missing[0]} inside; wanted the config.yaml of a run")
    problems = other_targets(plain["model"], _CLASSES, "model")
    if not problems and plain["model"].get("_target_") != _CLASSES[0]:
        problems = [f"model._target_={plain['model'].get('_target_')!r}: wanted {_CLASSES[0]}"]
    if not isinstance(plain["run"].get("name"), str):
        problems.append(f"run.name={plain['run'].get('name')!r}: wanted a text")
    if problems:
        raise ConfigError([f"{config}: {problem}" for problem in problems])
    return plain


def _figures(file: Path, saved: dict) -> dict[str, float]:
    """Of the validation of these very weights, where last.ckpt remembers one."""
    last = file.with_name("last.ckpt")
    callbacks = (load_saved(last) if last.is_file() and last != file else saved).get("callbacks", {})
    best = (callbacks.get(Checkpoints.__qualname__) or {}).get("best") or {}
    newest = callbacks.get(Validation.__qualname__) or {}
    step = saved.get("minillm", {}).get("step", -1)
    if file.name == "best.ckpt":
        return best["figures"] if best.get("step") == step else {}
    return newest["stages"]["end"] if newest.get("newest_step") == step else {}


def _push(directory: Path, name: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        url = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Upload the student")
    except (HTTPError, OSError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{directory} is written, but {name} does not take it: {reason}\n  what to do: `hf auth login` with a "
            f"token that may write there, then `hf upload {name} {directory}`"
        ) from error
    return str(url)


def main() -> None:
    cli.prepare()
    parser = argparse.ArgumentParser(prog="python -m minillm.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a run directory, or its checkpoints/*.ckpt"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="new, or empty")
    parser.add_argument("--push", metavar="owner/name", help="upload it to this repository of the hub")
    given = parser.parse_args()
    command = " ".join(["python -m minillm.export", *sys.argv[1:]])
    export(given.checkpoint.expanduser(), given.directory.expanduser(), push=given.push, command=command)


if __name__ == "__main__":
    cli.run(main, "train")
