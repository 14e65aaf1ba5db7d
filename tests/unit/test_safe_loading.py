"""No code of a model, adapter or checkpoint is run."""

import ast
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillm.common.errors import ModelError
from minillm.models import Checkpoint
from minillm.models.adapter import merge_adapter
from tests.tiny import make_model, make_tokenizer

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


def test_pickled_weights_are_read(model):
    wanted = load_file(model / "model.safetensors")
    torch.save(wanted, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    network, _ = Checkpoint(str(model)).load()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in wanted.items())


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
    with pytest.raises(ModelError, match="its weights are refused .it holds more than plain tensors"):
        merge_adapter(make_model(layers=1), str(folder), "x")
    assert not (tmp_path / "ran").exists()


def tar(file):
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


PICKLED = {
    "tar": tar,
    "script": lambda file: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file),
    "cut": lambda file: file.write_bytes(b"PK\x03\x04"),
    "empty": Path.touch,
    "text": lambda file: file.write_text("nonsense"),
}


@pytest.mark.parametrize("make", PICKLED.values(), ids=PICKLED)
def test_other_pickled_files_are_refused_without_torchs_advice_to_load_them_all_the_same(model, make):
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))
    (model / "model.safetensors").unlink()
    for name in ("adapter_model.bin", "pytorch_model.bin"):
        make(model / name)
    with pytest.raises(ModelError) as adapter:
        merge_adapter(make_model(layers=1), str(model), "x")
    (model / "adapter_config.json").unlink()
    with pytest.raises(ModelError) as whole:
        Checkpoint(str(model)).load()
    for caught in (adapter, whole):
        assert "weights_only" not in str(caught.value) and "arbitrary" not in str(caught.value)


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
    assert loads >= 2
