"""Several teachers: each row has what its own teacher alone gives; adapters on one base are as many teachers."""

import shutil
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from minillm.api.rollouts import backward, rollouts
from minillm.common.errors import ConfigError, DataError, ModelError
from minillm.common.types import TrainBatch
from minillm.models import Checkpoint, LanguageModel, Lora, ModelPair, Pair, Teachers
from minillm.models.adapter import save_adapter
from minillm.objectives import CrossEntropy, ForwardKL, MiniLLM, PretrainLoss, ReverseKL, TopK
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import Sampler, decode, prepared, rollout_alignment
from minillm.rollout.micro_batch import micro_batches
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.start import SupervisedStart
from tests.helpers import PROMPTS, prompt_batch
from tests.tiny import make_model, make_tokenizer

NUMBERS = torch.tensor([0, 1, 1, 0, 1, 0])
IDS = torch.arange(1, 13).view(2, 6)
STOPS = (0, 4, 9, 20, 25)


def networks():
    """Of unequal width and family, so that a state or a head of the other one cannot pass."""
    return {"code": make_model("gpt2", seed=3, width=16), "math": make_model(seed=2)}


def pairs():
    """A student with both teachers, and with each of them."""
    models = {name: LanguageModel(each, 31).frozen() for name, each in networks().items()}
    found = {"both": Teachers(models), **models}
    return {name: Pair(make_model(seed=1), each, make_tokenizer(), 31, STOPS) for name, each in found.items()}


def batch_of(name="both", own_prompts=False):
    """Six prompts; those of one teacher have no numbers. `own_prompts`: the teachers see another text."""
    batch = prompt_batch(PROMPTS * 2)
    if own_prompts:
        batch = replace(batch, teacher_ids_BP=batch.ids_BP.flip(0), teacher_mask_BP=batch.mask_BP.flip(0))
    return replace(batch, teachers_B=NUMBERS) if name == "both" else batch


def module_of(pair, objective, *, alpha=0.3, states="keep", **start):
    module = OnPolicyDistillation(
        pair,
        objective,
        Sampler(alpha=alpha, max_new_tokens=6, batch_size=2),
        PretrainLoss(enabled=False, coefficient=0.0, batch_size=1),
        LinearLoss(),
        Optim(),
        OnPolicy(rollouts=6, minibatch_size=6, max_steps=1, microbatch_tokens=30, teacher_states=states),
        SupervisedStart(minibatch_size=6, **start),
        seed=0,
    )
    module.manual_backward = lambda loss: loss.backward()
    return module


def gradients(module):
    found = {name: each.grad.clone() for name, each in module.student.named_parameters()}
    module.zero_grad()
    return found


def same_rows(several, alone, number):
    """The rows of one teacher, field by field."""
    ours, theirs = (each.rows(number == NUMBERS).trimmed() for each in (several, alone))
    mask = theirs.response_mask_BR
    assert torch.equal(ours.response_mask_BR, mask)
    assert torch.equal(ours.response_ids_BR[mask], theirs.response_ids_BR[mask])
    for name in ("student_logprobs_BR", "teacher_logprobs_BR", "behaviour_logprobs_BR", "costs_BR"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one[mask], other[mask], rtol=0, atol=1e-11)
    if (hidden := theirs.teacher_hidden_BRH) is not None:
        padded = pad(hidden, (0, ours.teacher_hidden_BRH.shape[-1] - hidden.shape[-1]))
        torch.testing.assert_close(ours.teacher_hidden_BRH[mask], padded[mask], rtol=0, atol=1e-11)
    else:
        assert ours.teacher_hidden_BRH is None


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("objective", "options", "own_prompts"),
    [
        (MiniLLM(), {}, False),
        (MiniLLM(), dict(alpha=0.0), True),
        (MiniLLM(), dict(states="recompute"), True),
        (ForwardKL(long_part=True), dict(alpha=0.0), False),
        (ReverseKL(long_part=True), dict(alpha=0.0, states="recompute"), False),
        (TopK(k=3, of="both"), {}, False),
    ],
)
def test_rollout_and_gradient_are_those_of_single_teachers_row_by_row(objective, options, own_prompts):
    """The gradient of a mini-batch is the sum of those of its rows of each teacher, by a run that has this teacher
    alone, over the common number of tokens."""
    made = {name: module_of(pair, objective, **options) for name, pair in pairs().items()}
    found = {name: each.rollout(TrainBatch(batch_of(name, own_prompts))) for name, each in made.items()}
    for number, name in enumerate(("code", "math")):
        same_rows(found["both"], found[name], number)
    both = prepared(found["both"], objective)
    losses = made["both"]._policy_gradients(both)
    ours, normaliser, sums = gradients(made["both"]), objective.normaliser(both.response_mask_BR), defaultdict(float)
    for number, name in enumerate(("code", "math")):
        module = made[name]
        rows = prepared(found[name], objective).rows(number == NUMBERS)
        for micro in micro_batches(rows, 10_000):
            output = micro.loss(LinearLoss(), objective, module.model, module.pair.teacher, normaliser)
            output.loss.backward()
            sums["loss"] += output.loss.detach()
        for key, value in gradients(module).items():
            sums[key] = sums[key] + value
    torch.testing.assert_close(losses["train/loss"], sums.pop("loss"), rtol=0, atol=1e-10)
    for key, value in sums.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-10)
    assert max(each.abs().max() for each in ours.values()) > 1e-4


@pytest.mark.some(1)
@pytest.mark.parametrize("kept", [True, False])
def test_the_start_has_answers_and_soft_targets_of_each_rows_teacher(kept):
    made = {name: module_of(pair, MiniLLM(), steps=1, kd_ratio=0.7) for name, pair in pairs().items()}
    answers = {
        name: each.start.answers(batch_of(name), each.pair, each.sampler, seed=3, keep_hidden=kept)
        for name, each in made.items()
    }
    for number, name in enumerate(("code", "math")):
        same_rows(answers["both"], answers[name], number)
    loss = made["both"]._start_gradients(answers["both"])["start/loss"]
    ours, n_tokens, sums = gradients(made["both"]), answers["both"].response_mask_BR.sum(), defaultdict(float)
    for number, name in enumerate(("code", "math")):
        rows = answers[name].rows(number == NUMBERS)
        for micro in micro_batches(rows, 10_000):
            models = (made[name].model, made[name].pair.teacher)
            output = micro.loss(LinearLoss(), CrossEntropy(0.7), *models, n_tokens)
            output.loss.backward()
            sums["loss"] += output.loss.detach()
        for key, value in gradients(made[name]).items():
            sums[key] = sums[key] + value
    torch.testing.assert_close(loss, sums.pop("loss"), rtol=0, atol=1e-10)
    for key, value in sums.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-10)


def test_a_rollout_of_rows_of_one_teacher_has_the_states_width_of_all():
    """Ranks join their rows: each has the same width, whatever teachers its rows have."""
    module = module_of(pairs()["both"], MiniLLM())
    batch = replace(batch_of(), teachers_B=torch.zeros(6, dtype=torch.long))
    assert module.rollout(TrainBatch(batch)).teacher_hidden_BRH.shape[-1] == 32
    drawn = replace(module.sampler, alpha=0.0).rollout(
        module.model, module.pair.teacher, batch, list(range(6)), stop_ids=STOPS, pad_id=0
    )
    assert drawn.teacher_hidden_BRH is None and module._with_teacher(drawn).teacher_hidden_BRH.shape[-1] == 32


@pytest.mark.some(2)
@pytest.mark.parametrize("shares", [1, 2, 4])
@pytest.mark.parametrize("max_tokens", [12, 40, 1000])
def test_a_micro_batch_has_one_teacher_and_each_row_is_there_once(shares, max_tokens):
    module = module_of(pairs()["both"], MiniLLM(), alpha=0.0)
    rollout = module.rollout(TrainBatch(batch_of(own_prompts=True)))
    micros = micro_batches(rollout, max_tokens, shares=shares)
    assert sorted(row for micro in micros for row in micro.rows_B.tolist()) == list(range(6))
    for micro in micros:
        assert set(NUMBERS[micro.rows_B].tolist()) == {micro.number} == {micro.for_teacher.number}
        assert micro.ids_BS.numel() <= max_tokens or len(micro.ids_BS) == 1


def test_greedy_answers_and_alignment_are_those_of_each_rows_teacher():
    ends, found = dict(stop_ids=STOPS, pad_id=0, max_new_tokens=6, batch_size=4), pairs()
    greedy = {name: decode(each.teacher, None, batch_of(name), seeds=None, **ends) for name, each in found.items()}
    student = LanguageModel(found["both"].student)
    given = {name: decode(student, None, batch_of(name), seeds=list(range(6)), **ends) for name in found}
    aligned = {
        name: rollout_alignment(student, each.teacher, given[name], LinearLoss(), max_tokens=30)
        for name, each in found.items()
    }
    for number, name in enumerate(("code", "math")):
        same_rows(greedy["both"], greedy[name], number)
        for field, values in vars(aligned[name]).items():
            ours = getattr(aligned["both"], field)[number == NUMBERS]
            torch.testing.assert_close(ours, values[number == NUMBERS], rtol=0, atol=1e-11)


def test_rows_without_a_number_are_refused():
    pair = pairs()["both"]
    with pytest.raises(ConfigError, match="rows have no teachers_B"):
        decode(None, pair.teacher, batch_of("math"), seeds=[0] * 6, alpha=1.0, max_new_tokens=2, batch_size=2,
               stop_ids=STOPS, pad_id=0)  # fmt: skip


# -- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student, a base with two adapters, and another teacher with an eos of its own."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, seed, family in (("student", 1, "llama"), ("base", 3, "gpt2"), ("other", 2, "llama")):
        network = make_model(family, seed=seed)
        network.generation_config.eos_token_id = {"student": 0, "base": [0, 7], "other": [0, 5]}[name]
        network.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    shutil.copytree(folder / "other", folder / "stranger")
    file = folder / "stranger" / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat"', '"?"').replace('"dog"', '"cat"').replace('"?"', '"dog"'))
    for n in (1, 2):
        network = make_model("gpt2", seed=3)
        Lora(rank=2).onto(network, base=str(folder / "base"), seed=n)
        torch.manual_seed(n)
        with torch.no_grad():
            for name, each in network.named_parameters():
                if "lora_B" in name:
                    each.normal_()
        save_adapter(network, folder / f"adapter{n}")
    return folder


def loaded(folder, **teachers) -> Pair:
    return ModelPair(str(folder / "student"), teachers=teachers, dtype="float64").load(torch.device("cpu"))


def test_adapters_on_one_base_are_teachers_that_share_its_weights(folder):
    base = str(folder / "base")
    specs = {f"with_{n}": {"source": base, "adapter": str(folder / f"adapter{n}")} for n in (1, 2)}
    pair = loaded(folder, plain=base, other=str(folder / "other"), **specs)
    assert list(pair.teachers) == ["other", "plain", "with_1", "with_2"] == list(pair.teacher_names)
    alone = {name: Checkpoint(**spec) for name, spec in specs.items()} | {"plain": Checkpoint(base)}
    logits = {}
    for name, each in alone.items():
        network = each.load(torch.float64)[0]
        logits[name] = network(IDS).logits
        ours = pair.teachers[name]
        torch.testing.assert_close(ours.head()(ours.hidden(IDS)), logits[name], rtol=0, atol=1e-9)
        batch, ends = prompt_batch(), dict(stop_ids=STOPS, pad_id=0, max_new_tokens=8, batch_size=3)
        one, two = (decode(None, model, batch, seeds=[1, 2, 3], alpha=1.0, **ends)
                    for model in (ours, LanguageModel(network).frozen()))  # fmt: skip
        assert torch.equal(one.response_ids_BR, two.response_ids_BR)
        assert not any(weight.requires_grad for weight in ours.network.parameters())
    assert (logits["with_1"] - logits["with_2"]).abs().max() > 0.1 < (logits["with_1"] - logits["plain"]).abs().max()
    weights = [{id(each) for each in pair.teachers[name].network.parameters()} for name in alone]
    common = weights[0] & weights[1] & weights[2]
    assert len(common) == len(weights[2]) == len(list(make_model("gpt2").parameters()))


def test_answers_end_where_any_model_says_so(folder):
    teachers = dict(base=str(folder / "base"), other=str(folder / "other"))
    assert loaded(folder, **teachers).stop_ids == (0, 5, 7)
    settings = ModelPair(str(folder / "student"), teachers=teachers)
    alone = settings.load_student(torch.device("cpu"))
    assert alone.stop_ids == (0, 5, 7) and alone.teacher is None and alone.teacher_names is None


def test_a_teacher_of_another_vocabulary_or_place_is_named(folder):
    with pytest.raises(ModelError) as caught:
        loaded(folder, base=str(folder / "base"), far=str(folder / "stranger"))
    assert str(caught.value).startswith("model.teachers.far: student and teacher do not share a vocabulary: 2 of")
    with pytest.raises(ConfigError, match=r"model\.teachers\.away: source=/no/such: no such file"):
        loaded(folder, away="/no/such")
    with pytest.raises(ConfigError, match=r"model\.teachers\.a: adapter=/no/dir: no adapter_config.json"):
        loaded(folder, a={"source": str(folder / "base"), "adapter": "/no/dir"}, b=str(folder / "base"))


# -- from Python ----------------------------------------------------------------------------------------------------


def test_ones_own_loop_has_each_rows_teacher(folder):
    teachers = dict(base=str(folder / "base"), other=str(folder / "other"))
    pair = loaded(folder, **teachers)
    whose = {"cat": "other", "dog": "base", "fish": "base"}
    rows = [{"instruction": f"the {word}", "teacher": name} for word, name in whose.items()]
    rollout = next(rollouts(pair, rows, size=4, sampler=Sampler(alpha=0.2, max_new_tokens=4)))
    for ids_P, number in zip(rollout.prompt_ids_BP, rollout.teachers_B, strict=True):
        (word,) = whose.keys() & set(pair.tokenizer.decode(ids_P).split())
        assert pair.teacher_names[number] == whose[word]
    losses = backward(pair, rollout)
    assert abs(losses["loss"]) < 100 and pair.student.get_output_embeddings().weight.grad.abs().sum() > 0
    with pytest.raises(DataError, match=r"wanted a name in model.teachers \(base, other\), got no such key"):
        next(rollouts(pair, ["the cat"]))
