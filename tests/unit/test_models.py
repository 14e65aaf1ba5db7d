"""Heads, pruning, stop tokens, loading from directories and what an error says."""

import copy
from dataclasses import replace

import pytest
import torch

from minillm.common.errors import ConfigError, ModelError
from minillm.models import (
    Architecture,
    Checkpoint,
    LanguageModel,
    Lora,
    ModelPair,
    PrunedTeacher,
    keep_layers,
    solo,
    split_problems,
)
from minillm.models.vocabulary import compare_vocabularies, stop_ids
from tests.tiny import FAMILIES, make_model, make_tokenizer


@pytest.fixture
def saved(tmp_path):
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "granite", "cohere"])
def test_logits_from_hidden_states_equal_the_models_own(family):
    network = make_model(family)
    if family == "granite":
        network.config.logits_scaling = network.logits_scaling = 4.0
    LanguageModel(network).verify()


def test_a_family_that_attends_to_all_that_is_cached_is_refused(monkeypatch):
    """As one that takes no mask in decoding would: the shorter row sees the padding before it."""
    network = make_model()
    forward = network.model.forward
    deaf = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(network.model, "forward", deaf)
    with pytest.raises(ModelError, match="llama: logits after a decoding step differ"):
        LanguageModel(network).verify()


def test_a_family_with_unknown_logits_is_refused():
    network = make_model()
    network.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ModelError, match=r"llama: logits from hidden states and head differ .* not supported"):
        LanguageModel(network).verify()


def test_weights_that_are_not_finite_are_no_question_of_the_family():
    network = make_model()
    network.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="llama: its logits are not finite.*float64") as caught:
        LanguageModel(network).verify()
    assert "family" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_reads_what_it_writes(family):
    network = make_model(family)
    architecture = Architecture.of(network.config)
    assert architecture == Architecture.of(architecture.random_model().config)
    assert (architecture.layers, architecture.width, architecture.ffn, architecture.vocabulary) == (2, 32, 48, 31)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_layers_changes_nothing_and_dropping_some_does(family):
    network = make_model(family, layers=4)
    ids = torch.arange(1, 7)[None]
    whole, part = keep_layers(network, [0, 1, 2, 3]), keep_layers(network, [0, 3])
    torch.testing.assert_close(whole(ids).logits, network(ids).logits, rtol=0, atol=1e-12)
    assert part.config.num_hidden_layers == 2
    names = dict(part.named_parameters())
    layer = next(name for name in names if ".1." in name and names[name].dim() > 1)
    assert torch.equal(names[layer], dict(network.named_parameters())[layer.replace(".1.", ".3.", 1)])


def test_layers_beyond_the_teacher_are_refused():
    with pytest.raises(ConfigError, match=r"layers \[1, 9\] of a teacher with 4 layers \(0 to 3\)"):
        PrunedTeacher(drop_layers=[1, 9]).kept(4)
    with pytest.raises(ConfigError, match="exactly one of the two"):
        PrunedTeacher()


@pytest.mark.parametrize("eos", [None, "beyond"])
def test_a_model_alone_without_an_end_is_refused_as_a_pair_is(eos):
    tokenizer = make_tokenizer(("beyond",))
    tokenizer.eos_token = eos
    with pytest.raises(ModelError, match=r"no usable eos token: id (None|31) with 31 rows"):
        solo(make_model(), tokenizer)


def saved_pair(folder, generation):
    """Student and teacher; the teacher has more ends than the student and fewer rows."""
    for name, rows, ends in (("student", 40, [0, 3]), ("teacher", 36, [0, 4, 38])):
        network = make_model(vocabulary=rows, dtype=torch.float32)
        network.config.eos_token_id = network.generation_config.eos_token_id = ends
        network.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
        if not generation:
            (folder / name / "generation_config.json").unlink()
    return folder / "student", folder / "teacher"


@pytest.mark.parametrize("generation", [True, False], ids=["stated", "of the config"])
def test_a_student_alone_ends_as_beside_its_teacher_whose_weights_are_not_read(tmp_path, generation):
    student, teacher = saved_pair(tmp_path, generation)
    pair = ModelPair(str(student), str(teacher))
    both = pair.load(torch.device("cpu"))
    (teacher / "model.safetensors").unlink()
    alone = pair.load_student(torch.device("cpu"))
    assert alone.teacher is None and both.stop_ids == (0, 3, 4)
    assert (alone.stop_ids, alone.n_vocab, alone.pad_id) == (both.stop_ids, both.n_vocab, both.pad_id)


def test_a_student_whose_teacher_is_gone_ends_by_itself_and_says_so(tmp_path, capsys):
    student, _ = saved_pair(tmp_path, True)
    alone = ModelPair(str(student), "/no/teacher").load_student(torch.device("cpu"))
    assert alone.stop_ids == (0, 3)
    said = " ".join(capsys.readouterr().out.split())
    assert "/no/teacher: no such file" in said and "end at the student's own tokens (0, 3) alone" in said


def test_a_student_of_its_teachers_layers_is_loaded_with_it(saved):
    pair = ModelPair(PrunedTeacher(keep_layers=[0]), str(saved)).load_student(torch.device("cpu"))
    assert pair.student.config.num_hidden_layers == 1 and pair.teacher is None


def test_a_different_template_is_noted():
    other = make_tokenizer()
    assert compare_vocabularies(make_tokenizer(), other, 31, 31).same_template
    other.chat_template = None
    found = compare_vocabularies(make_tokenizer(), other, 31, 31)
    assert not found.same_template and found.student.chat_template and not found.teacher.chat_template


def test_stop_tokens_are_a_set():
    network = make_model()
    network.generation_config.eos_token_id = [3, 4, 99]
    assert stop_ids(make_tokenizer(), network.generation_config, n_vocab=31) == (0, 3, 4)


def test_the_teacher_is_frozen_and_the_student_is_a_copy(saved):
    pair = ModelPair(student=PrunedTeacher(keep_layers=[0]), teacher=str(saved), dtype="float32").load(
        torch.device("cpu")
    )
    teacher = pair.teacher.network
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in pair.student.parameters())
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_dropout_is_off_after_loading(tmp_path):
    network = make_model("gpt2")
    network.config.resid_pdrop = network.config.embd_pdrop = network.config.attn_pdrop = 0.1
    network.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    network, _ = Checkpoint(str(tmp_path)).load()
    assert all(module.p == 0 for module in network.modules() if isinstance(module, torch.nn.Dropout))


def test_a_stated_architecture_is_compared(saved):
    stated = Architecture.of(make_model(layers=3).config)
    with pytest.raises(ModelError, match="layers: 3 stated, 2 found"):
        Checkpoint(str(saved), architecture=stated).load()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("/no/such/dir", "no such file or directory"),
        ("missing.gguf", "no such file or directory"),
        ("package:no_such_package", "not installed here"),
        ("someone/some-model", "cannot load someone/some-model: the hub cannot be reached"),
    ],
)
def test_a_model_that_cannot_be_had_says_what_to_do(source, text):
    with pytest.raises((ConfigError, ModelError), match=text):
        Checkpoint(source).load()


def test_a_copy_that_is_not_whole_says_what_to_do(saved):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=f"cannot load {saved}: (.|\n)*a .safetensors file is cut or damaged"):
        Checkpoint(str(saved)).load()
    weights.write_bytes(whole)
    for file in saved.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="save its tokenizer there too"):
        Checkpoint(str(saved)).load()


def test_weights_that_the_files_lack_are_not_drawn_at_random(tmp_path):
    network = make_model(layers=1, dtype=torch.float32)
    state = {name: value for name, value in network.state_dict().items() if name != "lm_head.weight"}
    network.save_pretrained(tmp_path, state_dict=state)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 of its weights are not in its files \(lm_head.weight\)"):
        Checkpoint(str(tmp_path)).load()


def test_the_side_of_a_missing_model_is_named(saved):
    with pytest.raises(ConfigError, match="model.student.source=/no/dir: no such file or directory"):
        ModelPair(student="/no/dir", teacher=str(saved)).load(torch.device("cpu"))


def test_auto_keeps_trained_weights_in_float32_and_the_teacher_small_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    pair = ModelPair(student="s", teacher="t")
    both = {"student": torch.float32, "teacher": torch.float32}
    assert pair.dtypes(torch.device("cpu")) == both
    assert pair.dtypes(torch.device("cuda")) == both | {"teacher": torch.bfloat16}
    half = ModelPair(student="s", teacher="t", dtype="bfloat16").dtypes(torch.device("cpu"))
    assert set(half.values()) == {torch.bfloat16}


def test_a_pruned_pair_keeps_rotary_frequencies_in_float32(saved, monkeypatch):
    pair = ModelPair(student=PrunedTeacher(keep_layers=[0]), teacher=str(saved))
    both = {"student": torch.float32, "teacher": torch.bfloat16}
    monkeypatch.setattr(ModelPair, "dtypes", lambda self, device: both)
    teacher = pair.load(torch.device("cpu")).teacher.network
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert teacher.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_gated_model_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a gated repo. 401 Client Error")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(ModelError, match="accept its licence"):
        Checkpoint("owner/gated").load()


def test_a_revision_is_passed_on(monkeypatch):
    seen = {}

    def remember(path, revision=None, **kwargs):
        seen.update(path=path, revision=revision)
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", remember)
    with pytest.raises(ModelError):
        Checkpoint("owner/name@v1.0").load()
    assert seen == {"path": "owner/name", "revision": "v1.0"}


@pytest.mark.parametrize("tied", [True, False])
def test_offload_moves_all_but_the_head(tied):
    network = Architecture("llama", 2, 32, 4, 2, 48, 31, tied).random_model()
    model, head = LanguageModel(network), network.get_output_embeddings().weight
    body = model.body()
    assert all(each is not head for each in body)
    # Tied embeddings are the head's; rotary frequencies are buffers and move too.
    names = {name for name, each in network.named_parameters() if any(each is one for one in body)}
    assert ("model.embed_tokens.weight" in names) == (not tied)
    assert sum("layers" in name for name in names) == 2 * 9
    assert any(each is network.model.rotary_emb.inv_freq for each in body)
    model.offload = True
    with model.body_away():  # on a CPU it is at home already
        assert model.head()(torch.zeros(1, 32)).shape == (1, 31)


def test_what_keeps_layers_from_being_split():
    shape = Architecture("llama", 2, 48, 6, 2, 40, 31, True)
    assert split_problems(shape, 2) == []
    assert split_problems(shape, 4) == [
        "4 does not divide its 6 heads; use a divisor",
        "4 does not divide its 2 key-value heads; use a divisor",
    ]
    assert split_problems(replace(shape, kv_heads=6), 3) == [
        "3 does not divide its 40 feed-forward columns; use a divisor"
    ]
    [problem] = split_problems(Architecture("gpt2", 2, 48, 6, 6, 40, 31, True), 2)
    assert problem.startswith("layers of gpt2 cannot be split by torch's plans; wanted one of llama, mistral, opt")


def test_under_adapters_the_students_frozen_weights_are_as_small_as_the_teachers(monkeypatch):
    monkeypatch.setattr("minillm.models.checkpoint.has_bfloat16", lambda device: True)
    found = ModelPair(student="s", teacher="t", lora=Lora()).dtypes(torch.device("cpu"))
    assert set(found.values()) == {torch.bfloat16}
