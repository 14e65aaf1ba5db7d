"""Teachers in 4 and 8 bits: what is asked of bitsandbytes, and what a machine without it is told."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError, ModelError
from minillm.models import Checkpoint, LanguageModel, ModelPair, PrunedTeacher
from minillm.models.checkpoint import quantisation
from minillm.plan import check_plan
from minillm.train.settings import check_config
from tests.conf.test_compose import composed
from tests.tiny import make_model, make_tokenizer


@pytest.fixture
def able(monkeypatch):
    """As on a GPU with bitsandbytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(ConfigError, match="bits=4: needs a CUDA GPU and there is none here; remove it"):
        Checkpoint("t", bits=4).load()


def test_without_the_package_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bits=8: needs bitsandbytes; `pip install -r requirements-quant.txt`"):
        Checkpoint("t", bits=8).load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_a_run_refuses_before_any_work_with_all_else_and_a_plan_does_not():
    bits = ["pair=gpt2_120m", "model.teacher.bits=4"]
    with pytest.raises(ConfigError) as caught:
        check_config(composed(*bits, "seed=x"))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["seed='x'", "model.teacher.bits=4"]
    assert check_plan(composed(*bits, config="plan")).settings.model.teacher.bits == 4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ModelPair(Checkpoint("s", bits=4), "t"), "student.bits=4: only a teacher can be quantised"),
        (lambda: ModelPair(PrunedTeacher([0]), Checkpoint("t", bits=4)), "teacher.bits=4: the student is made of"),
        (lambda: Checkpoint("t", bits=4, offload=True), "bits=4 with offload=true"),
    ],
)
def test_what_does_not_go_together(able, make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_bits_reach_the_loader_and_the_head_stays_whole(able, monkeypatch, tmp_path):
    make_model(dtype=torch.float32).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    seen = {}
    load = AutoModelForCausalLM.from_pretrained

    def remember(path, quantization_config=None, **options):
        seen["settings"] = quantization_config
        return load(path, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remember)
    Checkpoint(str(tmp_path), bits=4).load(torch.bfloat16)
    settings = seen["settings"]
    assert settings.load_in_4bit and not settings.load_in_8bit and settings.bnb_4bit_compute_dtype == torch.bfloat16
    assert settings.llm_int8_skip_modules is None  # then transformers leaves the output layer out
    Checkpoint(str(tmp_path)).load()
    assert seen["settings"] is None
    assert quantisation(8, torch.bfloat16).load_in_8bit


def test_rounding_in_eight_bits_is_no_reason_to_refuse_a_family():
    network = make_model()
    network.lm_head.register_forward_hook(lambda module, args, output: output * 1.01)
    with pytest.raises(ModelError):
        LanguageModel(network).verify()
    network.is_quantized = True
    LanguageModel(network).verify()


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs a CUDA GPU and bitsandbytes: loads a quantised teacher",
)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_teacher_is_near_the_whole_one(tmp_path, bits):
    make_model(dtype=torch.float32, seed=2).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    pair = ModelPair(str(tmp_path), Checkpoint(str(tmp_path), bits=bits)).load(torch.device("cuda"))
    ids = torch.arange(1, 9, device="cuda")[None]
    whole, quantised = pair.student(ids).logits.float(), pair.teacher.network(ids).logits.float()
    assert pair.teacher.head().weight_VH.dtype.is_floating_point
    assert 0 < (whole - quantised).abs().mean() < 0.6 * whole.abs().mean()
