"""No code of a model, adapter or checkpoint is run, and pickled weights are said aloud."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillm.common.errors import ModelError
from minillm.models import Checkpoint
from minillm.models.adapter import merge_adapter
from tests.conftest import make_model, make_tokenizer

PACKAGE = Path(__file__).parents[2] / "minillm"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    make_model(layers=1, dtype=torch.float32).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


class Runs:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_weights_are_said_and_read(model, capsys):
    wanted = load_file(model / "model.safetensors")
    torch.save(wanted, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    network, _ = Checkpoint(str(model)).load()
    assert "no safetensors; its pickled weights are read as plain tensors" in " ".join(capsys.readouterr().out.split())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in wanted.items())


def test_safetensors_need_no_word(model, capsys):
    Checkpoint(str(model)).load()
    assert "pickled" not in capsys.readouterr().out


def test_code_in_pickled_weights_is_not_run(model, tmp_path):
    torch.save({"lm_head.weight": Runs(tmp_path / "ran")}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="hold more than tensors and are refused; give safetensors"):
        Checkpoint(str(model)).load()
    assert not (tmp_path / "ran").exists()


def test_code_of_a_model_is_not_run(model, tmp_path):
    (model / "own.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
        "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    )
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="code of its own, which is not run here"):
        Checkpoint(str(model)).load()
    assert not (tmp_path / "ran").exists()


def test_code_in_a_pickled_adapter_is_not_run(model, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))
    torch.save({"a": Runs(tmp_path / "ran")}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="hold more than tensors and are refused"):
        merge_adapter(make_model(layers=1), str(folder), "x")
    assert not (tmp_path / "ran").exists()


def test_every_torch_load_is_of_plain_tensors_and_nothing_trusts_remote_code():
    loads = 0
    for file in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            assert given.get("trust_remote_code", False) is False, file
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
                loads += 1
                assert given.get("weights_only") is True, file
    assert loads >= 3
