"""The pair that docs/recipes.md shows how to write: every stage of the chain composes and names the right models."""

import re
import shlex

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from minillm.chain import METHODS, recipe_of, stages_of
from minillm.models import Checkpoint, Lora
from minillm.models.adapter import save_adapter
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF
from tests.tiny import make_model, make_tokenizer

PAGE = (CONF.parent / "docs" / "recipes.md").read_text()


@pytest.fixture(scope="module")
def own_pair(tmp_path_factory):
    """The file that the page shows."""
    folder = tmp_path_factory.mktemp("conf") / "pair"
    folder.mkdir()
    (folder / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)[1])
    return f"hydra.searchpath=[file://{folder.parent}]"


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["mine", "own"])
def test_the_own_pair_runs_through_the_chain(own_pair, pair):
    words = shlex.split(re.search(rf"python -m minillm.chain (pair={pair} .*)", PAGE)[1])
    with initialize_config_dir(str(CONF / "chain"), version_base="1.3"):
        plain = OmegaConf.to_container(compose("chain", [*words, "run.dir=runs/mine"]), resolve=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = OmegaConf.to_container(compose("train", [*recipe_of(plain, "sft"), own_pair]).data)
        found = {}
        for stage in stages_of(plain, data, 32):
            if stage.command[0] == "train.py":
                made = check_config(compose("train", [*stage.command[1:-1], "run.dir=runs/x", own_pair])).model
                found[stage.name] = made.student.source, made.teacher and made.teacher.source
    teacher = "runs/mine/teacher/student"
    assert data["template"] == ("chat" if pair == "mine" else "paper")
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


def test_the_stages_by_hand_have_the_right_models():
    commands = re.findall(r"python train.py (recipe=.*)", PAGE.split("## One's own pair")[1].split("## ")[0])
    made = {}
    for command in commands:
        words = shlex.split(command)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            model = check_config(compose("train", [*words, "run.dir=runs/x"])).model
        made[words[0]] = model.student.source, model.teacher and model.teacher.source
    assert made == {
        "recipe=teacher": ("MY/TEACHER", None),
        "recipe=start": ("MY/STUDENT", None),
        "recipe=minillm": ("runs/my_start/student", "runs/my_teacher/student"),
    }


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
