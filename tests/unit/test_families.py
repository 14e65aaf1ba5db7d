"""Families of transformers: each computed as it computes itself, or refused by its name before any work."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from minillm.common.errors import ConfigError, ModelError
from minillm.common.types import PromptBatch
from minillm.data.prompts import pad
from minillm.models import Architecture, Checkpoint, LanguageModel, Lora, ModelPair, PrunedTeacher, keep_layers
from minillm.models.families import exact_length, positions, too_long, unsupported, without_noise
from minillm.models.loaded import pair_of
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import decode, rollout_divergence
from minillm.rollout.micro_batch import micro_batches
from tests.families import MORE, REFUSED, ROWS, SIZES, family_config, family_model, longrope, model_of, multimodal
from tests.tiny import make_model, make_tokenizer

PROMPTS = [[7, 9, 12], [5, 10, 8, 11, 30, 6, 10, 3, 4, 20, 21, 22], [14, 15, 16, 17, 18]]


def answered(network, prompts=PROMPTS, n_tokens=24):
    model = LanguageModel(network)
    ids, mask = pad(prompts, 0, left=True)
    batch = PromptBatch(ids, mask, torch.arange(len(prompts)))
    options = dict(stop_ids=(ROWS + 1,), pad_id=0, max_new_tokens=n_tokens, batch_size=2)
    return decode(model, None, batch, seeds=list(range(len(prompts))), **options)


@torch.no_grad()
def own_logprobs(network, rollout, row):
    prompt = rollout.prompt_ids_BP[row][rollout.prompt_mask_BP[row]]
    ids = torch.cat([prompt, rollout.response_ids_BR[row]])
    logits = network(input_ids=ids[None], use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).squeeze(1)


@pytest.mark.some(12)
@pytest.mark.parametrize("family", [*SIZES, *MORE])
def test_decoding_gives_the_log_probs_of_the_families_own_forward_pass(family):
    """Answers run beyond every window."""
    network = family_model(family)
    LanguageModel(network).verify()
    rollout = answered(network)
    for row in range(len(PROMPTS)):
        torch.testing.assert_close(
            rollout.student_logprobs_BR[row], own_logprobs(network, rollout, row), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_decoded_is_refused_by_name_before_its_weights_are_read(family, tmp_path):
    family_config(family).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"{tmp_path}: {family} (has|is) .*; ?"):
        Checkpoint(str(tmp_path)).load()


@pytest.mark.parametrize("family", ["mamba", "lfm2", "llama4_text"])
def test_verify_refuses_such_a_family_too(family):
    with pytest.raises(ModelError, match=f"{family} has"):
        LanguageModel(model_of(family_config(family))).verify()


def test_a_family_whose_code_takes_no_cache_is_no_traceback():
    config = AutoConfig.for_model("openai-gpt", n_embd=32, n_layer=2, n_head=4, vocab_size=ROWS, n_positions=64)
    with pytest.raises(ModelError, match="openai-gpt: rows of unequal length cannot be decoded together"):
        LanguageModel(model_of(config)).verify()


def test_a_family_without_sdpa_runs_with_eager_attention(tmp_path):
    family_model("gemma2").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    network, _ = Checkpoint(str(tmp_path)).load()
    assert network.config._attn_implementation == "eager"


def test_positions_are_found_wherever_a_family_keeps_them():
    found = {family: positions(family_config(family)) for family in ("llama", "gpt2", "mpt", "bloom")}
    assert found == {"llama": 256, "gpt2": 256, "mpt": 256, "bloom": None}
    assert positions(multimodal().config) == 256 and too_long(family_config("bloom"), 10**6) is None


# -- rotary embeddings that follow the longest row ---------------------------------------------------------------------


def test_rows_up_to_the_switch_do_not_depend_on_one_another():
    network, teacher = longrope(), LanguageModel(longrope(seed=1)).frozen()
    rollout = answered(network, [PROMPTS[0], PROMPTS[2]], 11)
    for row in range(2):
        torch.testing.assert_close(
            rollout.student_logprobs_BR[row], own_logprobs(network, rollout, row), atol=1e-4, rtol=0
        )
    sums = [
        rollout_divergence(LanguageModel(network), teacher, rollout, LinearLoss(), max_tokens=size).reverse_kl_BR.sum(
            -1
        )
        for size in (8, 2048)
    ]
    torch.testing.assert_close(*sums)


def test_rows_beyond_the_switch_are_refused_in_decoding_and_in_passes_over_whole_rows():
    network = longrope()
    with pytest.raises(ModelError, match="rows of 17 tokens: beyond 16 tokens the rotary embedding of phi3"):
        answered(network, [PROMPTS[0], PROMPTS[2]], 12)
    with pytest.raises(ModelError, match="rows of 17 tokens"):
        LanguageModel(network).hidden(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (dict(rope_type="default", rope_theta=1e4), None),
        (dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64), None),
        (dict(rope_type="dynamic", rope_theta=1e4, factor=2.0), 256),
    ],
)
def test_which_rotary_embeddings_have_a_limit(rope, limit):
    assert exact_length(family_config("llama", rope_parameters=rope)) == limit


def test_a_rope_of_one_type_of_layers_counts():
    rope = {
        "full_attention": dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
        "sliding_attention": dict(rope_type="default", rope_theta=1e4),
    }
    assert exact_length(family_config("gemma3_text", rope_parameters=rope)) == 256


# -- multimodal models -------------------------------------------------------------------------------------------------


def test_a_nested_window_is_seen_in_decoding_and_training():
    network = multimodal()
    LanguageModel(network).verify()
    rollout = answered(network)
    network.train()
    model = LanguageModel(network)
    for micro in micro_batches(rollout, 64):
        scored = LinearLoss().logprobs(micro.side(model), micro.take(rollout.response_ids_BR))
        torch.testing.assert_close(scored, micro.take(rollout.student_logprobs_BR), atol=1e-4, rtol=0)


def test_only_the_language_model_of_a_multimodal_student_is_trained(tmp_path):
    for name, seed in (("student", 1), ("teacher", 2)):
        multimodal(seed).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    found = ModelPair(str(tmp_path / "student"), str(tmp_path / "teacher")).load(torch.device("cpu"))
    trained = {name for name, each in found.student.named_parameters() if each.requires_grad}
    assert trained and not any("vision" in name or "projector" in name for name in trained)
    assert Architecture.of(found.student.config).layers == 2
    adapted = ModelPair(str(tmp_path / "student"), lora=Lora(rank=2)).load(torch.device("cpu")).student
    assert not any("vision" in name for name, each in adapted.named_parameters() if each.requires_grad)


# -- noise -------------------------------------------------------------------------------------------------------------


def test_all_noise_of_the_training_mode_is_turned_off():
    network = model_of(family_config("mixtral", router_jitter_noise=0.1, attention_dropout=0.1), noise=False).train()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(network(ids).logits, network(ids).logits)
    nested = multimodal().config
    nested.text_config.attention_dropout = nested.vision_config.attention_dropout = 0.1
    without_noise(nested)
    assert nested.text_config.attention_dropout == nested.vision_config.attention_dropout == 0


@pytest.mark.some(12)
@pytest.mark.parametrize("family", [*SIZES, *MORE])
@torch.no_grad()
def test_turning_noise_off_leaves_the_eval_mode_as_it_was(family):
    ids = torch.arange(3, 3 + 2 * 12).view(2, 12)
    own, ours = (family_model(family, noise=noise)(input_ids=ids, use_cache=False).logits for noise in (True, False))
    assert torch.equal(own, ours)


# -- students made of layers of their teacher --------------------------------------------------------------------------


@torch.no_grad()
def layers_left_out(network, kept):
    """The network with the other layers taken out of its stack by hand."""
    network = copy.deepcopy(network)
    layers = network.model.layers
    network.model.layers = torch.nn.ModuleList(layers[layer] for layer in kept)
    if kinds := getattr(network.config, "layer_types", None):  # by which the model chooses each layer's mask
        network.config.layer_types = [kinds[layer] for layer in kept]
    for new, layer in enumerate(network.model.layers):
        layer.self_attn.layer_idx = new
    return network(torch.arange(20)[None], use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("smollm3", dict(no_rope_layers=[1, 1, 0, 1])),
        ("qwen3", dict(layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"])),
        ("qwen2_moe", dict(mlp_only_layers=[2], intermediate_size=48)),
    ],
)
def test_a_pruned_student_keeps_what_is_said_of_its_layers(family, more):
    network = family_model(family, **more)
    student = keep_layers(network, [0, 2, 3])
    torch.testing.assert_close(
        student(torch.arange(20)[None], use_cache=False).logits, layers_left_out(network, [0, 2, 3])
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_pruned_student_is_tied_as_the_teachers_is(tied):
    network = make_model("qwen3", layers=4, tied=tied)
    part, layers = keep_layers(network, [0, 3]), network.model.layers
    assert (part.lm_head.weight is part.model.embed_tokens.weight) is tied
    assert part.num_parameters() == network.num_parameters() - 2 * sum(each.numel() for each in layers[0].parameters())


@pytest.mark.parametrize(
    ("family", "more", "kept"),
    [
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), [0, 2, 3]),
        ("qwen2_moe", dict(mlp_only_layers=[], decoder_sparse_step=2, intermediate_size=48), [0, 2, 3]),
    ],
)
def test_a_student_that_would_compute_something_else_is_refused(family, more, kept):
    with pytest.raises(
        ModelError, match=rf"{family}: a student of the layers \[0, 2, 3\] cannot be made: .*keep_layers"
    ):
        keep_layers(family_model(family, **more), kept)


@pytest.mark.parametrize("family", [each for each in SIZES if each != "gpt_oss"])
def test_layers_of_every_healthy_family_can_be_left_out(family):
    assert unsupported(family_config(family)) is None
    keep_layers(family_model(family), PrunedTeacher(drop_layers=[3]).kept(4))


def test_layers_beyond_those_that_are_there_are_refused():
    with pytest.raises(ConfigError, match="layers"):
        PrunedTeacher(drop_layers=[4]).kept(4)


def test_the_page_of_families_is_of_these_and_of_this_version():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    assert f"transformers {transformers.__version__}" in page
    assert not [family for family in (*SIZES, *MORE, *REFUSED) if f"| {family} |" not in page]


def test_a_pair_of_one_family_without_positions_loads():
    pair = pair_of(family_model("bloom", seed=1), family_model("bloom", seed=2), make_tokenizer(), make_tokenizer())
    assert pair.n_vocab == ROWS
