"""Adapters against the weights they stand for: logits, gradients, export, what is saved."""

import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from minillm.common.errors import ConfigError
from minillm.common.types import TrainBatch
from minillm.models import Architecture, FromScratch, LanguageModel, Lora, ModelPair, Pair
from minillm.models.adapter import is_adapted, merged_weights, save_adapter
from minillm.models.export import export_student
from minillm.objectives import MiniLLM, PretrainLoss
from minillm.rollout import Sampler, prepared
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.start import SupervisedStart
from tests.families import family_model
from tests.helpers import PROMPTS, ROAD_NAMES, ROADS, prompt_batch
from tests.tiny import FAMILIES, make_model, make_pair, make_tokenizer

IDS = torch.arange(1, 9)[None]
LORA = Lora(rank=3, alpha=5.0)


def adapted(family="llama", lora=LORA, dtype=torch.float64, seed=0):
    """With B away from 0, as after some training."""
    network = make_model(family, dtype=dtype, seed=1)
    lora.onto(network, base="owner/base", seed=seed)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return network


def by_hand(family="llama"):
    """The plain network with W + alpha / rank B A, from the adapted one's factors; GPT-2 stores W transposed."""
    network, plain = adapted(family), make_model(family, seed=1)
    factors = {name: each for name, each in network.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            module = name.removesuffix(".weight")
            if f"{module}.lora_A.default.weight" in factors:
                a, b = (factors[f"{module}.lora_{each}.default.weight"] for each in "AB")
                parameter += 5 / 3 * ((b @ a).T if family == "gpt2" else b @ a)
    return plain


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_no_logits_and_freezes_the_rest(family):
    network, plain = make_model(family), make_model(family)
    LORA.onto(network, base="b")
    assert type(network) is type(plain) and is_adapted(network) and not is_adapted(plain)
    assert torch.equal(network(IDS).logits, plain(IDS).logits)
    trained = {name for name, each in network.named_parameters() if each.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    LanguageModel(network).verify()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_merged_weights_are_those_of_the_product_by_hand(family):
    network, plain = adapted(family), by_hand(family)
    assert (network(IDS).logits - make_model(family, seed=1)(IDS).logits).abs().max() > 0.1
    torch.testing.assert_close(network(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-10)
    merged = merged_weights(network)
    assert merged.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=1e-12)


def test_adapters_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (make_model() for _ in range(3))
    torch.set_rng_state(state)
    for network, seed in ((one, 7), (same, 7), (other, 8)):
        LORA.onto(network, base="b", seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    firsts = [next(p for name, p in each.named_parameters() if "lora_A" in name) for each in (one, same, other)]
    assert torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[0], firsts[2])


def test_adapters_of_half_weights_are_float32():
    network = make_model(dtype=torch.bfloat16)
    LORA.onto(network, base="b")
    assert {each.dtype for each in network.parameters() if each.requires_grad} == {torch.float32}
    assert {each.dtype for each in merged_weights(network).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(dropout=0.1), "dropout=0.1: wanted 0, so that rollout and update are of one model"),
        (dict(rank=0), "rank=0: wanted a positive number"),
        (dict(alpha=0), "alpha=0: wanted a number above 0"),
        (dict(target_modules=[]), "target_modules=\\[\\]: wanted names"),
        (
            dict(target_modules=["q_proj", "c_attn"]),
            "lora.target_modules: c_attn not among the linear layers of llama;",
        ),
        (
            dict(target_modules=["lm_head"]),
            "lora.target_modules: lm_head not among .* choose from: down_proj, gate_proj",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Lora(**settings).onto(make_model(), base="b")


def test_random_weights_take_no_adapters():
    with pytest.raises(ConfigError, match="lora: adapters of random weights that stay as they are; wanted lora=none"):
        ModelPair(FromScratch(None, "tokenizer"), "teacher", lora=Lora())


def test_chosen_modules_only():
    network = make_model()
    Lora(target_modules=["q_proj", "mlp.up_proj"]).onto(network, base="b")
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in network.state_dict() if "lora_" in name}
    assert names == {"q_proj", "up_proj"}


def module_of(network, road, batch_size=4):
    pair = Pair(network, make_pair().teacher, make_tokenizer(), 31, (0,))
    parts = (MiniLLM(), Sampler(alpha=0.3, max_new_tokens=6, batch_size=4), PretrainLoss(batch_size=4), road)
    regime = OnPolicy(rollouts=6, minibatch_size=6, inner_epochs=1, max_steps=1)
    module = OnPolicyDistillation(pair, *parts, Optim(learning_rate=1e-2), regime, SupervisedStart(), seed=0)
    module.manual_backward = lambda loss: loss.backward()
    return module


def update(module):
    rollout = module.rollout(TrainBatch(prompt_batch(PROMPTS * 2)))
    module._policy_gradients(prepared(rollout, module.objective))
    module._corpus_gradients(torch.arange(1, 29).view(4, 7) % 31)


@pytest.mark.parametrize("road", ROADS, ids=ROAD_NAMES)
def test_gradients_are_those_of_the_whole_weights_through_the_product(road):
    """dB = s dW A^T and dA = s B^T dW, dW from a plain student with the merged weights."""
    network, plain = adapted(), by_hand()
    update(module_of(network, road))
    update(module_of(plain, road))
    whole = {name: each.grad for name, each in plain.named_parameters()}
    parts = dict(network.named_parameters())
    checked = 0
    for name, each in parts.items():
        if ".lora_" not in name:
            assert each.grad is None
        elif ".lora_A." in name:
            b, grad = parts[name.replace("lora_A", "lora_B")], whole[f"{name.split('.lora_')[0]}.weight"]
            torch.testing.assert_close(each.grad, 5 / 3 * b.T @ grad, rtol=0, atol=1e-10)
            torch.testing.assert_close(b.grad, 5 / 3 * grad @ each.T, rtol=0, atol=1e-10)
            checked += 1
    assert checked == 2 * 7


def test_checkpoints_and_optimizer_hold_adapters_only():
    module = module_of(adapted(), ROADS[1])
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert state and all(name.startswith("student.") and ".lora_" in name for name in state)
    optimizer = module.configure_optimizers()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(state)
    update(module)
    optimizer.step()
    moved = module.student(IDS).logits
    assert len(optimizer.state) == len(state)

    other = module_of(adapted(seed=3), ROADS[1])
    assert (other.student(IDS).logits - moved).abs().max() > 0.1
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.student(IDS).logits, moved)
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_A"):
        other.load_state_dict({})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_exported_student_is_plain_and_gives_the_adapted_logits(family, tmp_path):
    network = adapted(family, dtype=torch.float32)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    pair = Pair(network, None, make_tokenizer(), 31, (0,))
    export_student(pair, tmp_path / "student", card="Trained.")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert not is_adapted(opened)
    torch.testing.assert_close(opened(IDS).logits, network(IDS).logits, rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())


def test_a_tied_head_stays_tied_in_the_export(tmp_path):
    network = Architecture("llama", 2, 32, 4, 2, 48, 31, tied=True).random_model().eval()
    LORA.onto(network, base="b")
    pair = Pair(network, None, make_tokenizer(), 31, (0,))
    export_student(pair, tmp_path / "student", card="Trained.")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    torch.testing.assert_close(opened(IDS).logits, network(IDS).logits, rtol=0, atol=1e-5)


def test_peft_reads_the_saved_adapter(tmp_path):
    network = adapted()
    save_adapter(network, tmp_path)
    read = PeftModel.from_pretrained(copy.deepcopy(make_model(seed=1)), tmp_path)
    assert read.peft_config["default"].base_model_name_or_path == "owner/base"
    torch.testing.assert_close(read(IDS).logits, network(IDS).logits, rtol=0, atol=1e-12)


def test_an_adapter_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    save_adapter(adapted(), tmp_path / "adapter")
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}

    def full(weights, file, **options):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("minillm.models.adapter.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_adapter(adapted(seed=4), tmp_path / "adapter")
    assert {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before
    assert [each.name for each in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma3n_text", "ctrl", "phimoe"])
def test_only_linear_layers_are_adapted_whatever_else_has_their_names(family):
    """Fused experts beside linear ones, layers in a list, routers that give several tensors."""
    plain, network = (family_model(family) for _ in range(2))
    Lora(rank=2).onto(network, base="x")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        for name, each in network.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.02)
        adapted = network(input_ids=ids, use_cache=False).logits
        plain.load_state_dict(merged_weights(network))
        merged = plain(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)
