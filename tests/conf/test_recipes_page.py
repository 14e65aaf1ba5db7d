"""The pair that docs/recipes.md shows how to write: every stage of the chain composes and names the right models."""

import re
import shlex

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from minillm.chain import METHODS, stages_of
from minillm.models import Checkpoint, Lora
from minillm.models.lora import save_adapter
from minillm.settings import check_config
from tests.conf.test_compose import CONF
from tests.conftest import make_model, make_tokenizer

PAGE = (CONF.parent / "docs" / "recipes.md").read_text()


@pytest.fixture(scope="module")
def own_pair(tmp_path_factory):
    """The files that the page shows, and those that it says are the same with another recipe."""
    folder = tmp_path_factory.mktemp("conf") / "experiment"
    folder.mkdir()
    shown = {}
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL):
        shown[re.search(r"conf/experiment/mine_(\w+)\.yaml", text)[1]] = text
    for stage, like in {"kd": "start", "seqkd": "start", "minillm_nopt": "minillm"}.items():
        assert f"mine_{stage}.yaml" in shown[like] and f"`recipe: {stage}`" in shown[like]
        same = shown[like].replace(f"/recipe: {like}\n", f"/recipe: {stage}\n")
        shown[stage] = same.replace(f"name: mine_{like}", f"name: mine_{stage}")
    for stage, text in shown.items():
        (folder / f"mine_{stage}.yaml").write_text(text)
    return f"hydra.searchpath=[file://{folder.parent}]"


def test_the_own_pair_runs_through_the_chain(own_pair):
    words = shlex.split(PAGE.split("python -m minillm.chain pair=mine")[1].split("```")[0].replace("\\\n", ""))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = compose("chain", ["pair=mine", *words, "run.dir=runs/mine"])
        plain = OmegaConf.to_container(plain, resolve=True)
        overrides = plain["overrides"]
        data = OmegaConf.to_container(compose("train", ["experiment=mine_sft", *overrides, own_pair]).data)
        found = {}
        for stage in stages_of(plain, data, 32):
            if stage.command[0] == "train.py":
                made = check_config(compose("train", [*stage.command[1:-1], "run.dir=runs/x", own_pair])).model
                found[stage.name] = made.student.source, made.teacher and made.teacher.source
    teacher = "runs/mine/teacher/student"
    assert found == {
        "teacher": ("MY/TEACHER", None),
        "start-0": ("MY/STUDENT", None),
        "sft-0": ("MY/STUDENT", None),
        "kd-0": ("MY/STUDENT", teacher),
        "seqkd-0": ("MY/STUDENT", teacher),
        "minillm-0": ("runs/mine/start-0/student", teacher),
        "minillm_nopt-0": ("runs/mine/start-0/student", teacher),
    }
    assert {name.split("-")[0] for name in found} == {"teacher", "start", *METHODS}


def test_an_adapter_is_merged_as_the_page_says(tmp_path):
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    network, _ = Checkpoint(str(tmp_path / "base")).load()
    Lora(rank=2).onto(network, base=str(tmp_path / "base"))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(network, tmp_path / "adapter")
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    for name in ("ADAPTER", "BASE", "MERGED"):
        code = code.replace(f'"{name}"', repr(str(tmp_path / name.lower())))
    exec(code)
    merged, tokenizer = Checkpoint(str(tmp_path / "merged")).load()
    ids = torch.arange(1, 9)[None]
    torch.testing.assert_close(merged(ids).logits, network(ids).logits, rtol=0, atol=1e-4)
    assert tokenizer.eos_token == "</s>" and not any("lora" in name for name in merged.state_dict())
