"""docs/settings.md names every key with its default."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from tests.conf.test_compose import CONF, composed

PAGE = (CONF.parent / "docs" / "settings.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n\n(.+?)(?=\n## |\Z)", PAGE, flags=re.M | re.S))
NEEDS = {
    "model=pair": ["+checkpoint@model.student=gpt2", "+checkpoint@model.teacher=gpt2"],
    "regime=supervised": ["objective=sft"],
}


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def table(text):
    return {key: yaml.safe_load(value) for key, value in re.findall(r"^\| `(.+?)` \| `(.*?)` \|", text, flags=re.M)}


@pytest.mark.some(8)
@pytest.mark.parametrize("title", [title for title in SECTIONS if "=" in title])
def test_every_key_of_a_group_is_there_with_its_default(title):
    choice = title.split("`")[1]
    group = choice.split("=")[0]
    node = OmegaConf.to_container(composed(choice, *NEEDS.get(choice, ())))
    found = dict(flat(node["model" if group == "lora" else group], "model." if group == "lora" else f"{group}."))
    if group == "model":  # the two checkpoints are the pair's own
        found = {key: value for key, value in found.items() if ".student." not in key and "architecture" not in key}
        found = {key: value for key, value in found.items() if key not in ("model.lora", "model.teacher.source")}
    if group == "lora":
        found = {key: value for key, value in found.items() if key.startswith("model.lora.")}
    assert table(SECTIONS[title]) == found


def test_the_root_is_there():
    node = yaml.safe_load((CONF / "train.yaml").read_text())
    found = dict(flat({key: value for key, value in node.items() if key not in ("defaults", "hydra")}))
    assert table(SECTIONS["At the root"]) == found


def test_every_group_of_settings_has_a_section():
    there = {title.split("`")[1].split("=")[0] for title in SECTIONS if "=" in title}
    # Models, choices of the settings above, and evaluate.py's own (docs/evaluation.md).
    elsewhere = {"checkpoint", "recipe", "pair", "chain", "experiment", "ablation", "sweep", "suite", "size"}
    assert there | elsewhere == {folder.name for folder in CONF.iterdir() if folder.is_dir()}
