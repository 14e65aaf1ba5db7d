"""A student that is its own teacher: at the start, as its moving average, as its base without adapters."""

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir

from minillm.common.errors import ConfigError
from minillm.models import LanguageModel, Lora, ModelPair
from minillm.train.card import card_text
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF
from tests.integration.test_resume import Killed, rows, train

LORA = ["lora=default", "model.lora.rank=2"]
SELF = ["data.teacher_system=why big red", "model.ema_rate=0.3", "callbacks.checkpoints.every=1"]


@pytest.fixture(scope="module")
def own(world, overrides):
    """Three rollouts of one step each; the teacher alone sees a system turn."""
    loop = ["start.steps=0", "regime.minibatch_size=4", "regime.max_steps=3", "optim.learning_rate=1e-2"]
    return [*overrides, "objective=reverse_kl", "sampler.alpha=0.0", *loop, *SELF]


class Weights(L.Callback):
    """The trained weights before the first step, and after each."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        self.on_train_batch_end(trainer, module)

    def on_train_batch_end(self, trainer, module, *args):
        if module.at_boundary:
            trained = {name: each for name, each in module.student.named_parameters() if each.requires_grad}
            self.seen.append({name: each.detach().clone() for name, each in trained.items()})


@pytest.mark.parametrize("more", [[], LORA, ["regime=supervised", "objective=kd"]], ids=["full", "lora", "supervised"])
def test_the_moving_average_is_its_closed_form_and_survives_a_kill(tmp_path, own, supervised, more):
    if "objective=kd" in more:
        own = [*supervised, *more, "regime.max_steps=3", *SELF]
    own, weights = [*own, *more, "model.teacher=ema"], Weights()
    whole = train(tmp_path / "whole", own, also=weights)
    teacher = dict(whole.module.pair.teacher.network.named_parameters())
    start, *steps = weights.seen
    assert len(steps) == 3
    for name, first in start.items():
        expected = 0.7**3 * first + sum(0.3 * 0.7 ** (2 - k) * now[name] for k, now in enumerate(steps))
        torch.testing.assert_close(teacher[name], expected, rtol=1e-5, atol=1e-6)
        assert not teacher[name].requires_grad
    assert any(not torch.equal(teacher[name], first) for name, first in start.items())
    frozen = [(p, teacher[n]) for n, p in whole.module.student.named_parameters() if not p.requires_grad]
    assert all(one is other for one, other in frozen) and bool(frozen) == ("lora=default" in more)

    with pytest.raises(Killed):
        train(tmp_path / "cut", own, kill_after=2)
    again = train(tmp_path / "cut", own, resume="auto")
    for name, each in again.module.pair.teacher.network.named_parameters():
        assert torch.equal(each, teacher[name])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("teacher", "more"), [("start", []), ("start", LORA), ("base", LORA), ("base", [*LORA, "sampler.alpha=0.4"])]
)
def test_start_and_base_equal_the_same_directory_as_a_teacher(tmp_path, own, world, teacher, more):
    runs = [train(tmp_path / str(n), [*own, *more, f"model.teacher={each}", "regime.teacher_states=recompute"])
            for n, each in enumerate((teacher, f"{world}/student"))]  # fmt: skip
    one, other = (run.module.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert rows(tmp_path / "0") == rows(tmp_path / "1")
    shared = runs[0].module.pair.teacher.network is runs[0].module.student
    assert shared == (teacher == "base")


def test_the_base_is_the_model_without_its_adapters(world):
    adapted = ModelPair(f"{world}/student", "base", lora=Lora(rank=2)).load(torch.device("cpu"))
    plain = ModelPair(f"{world}/student", f"{world}/student").load(torch.device("cpu")).teacher
    with torch.no_grad():
        for name, each in adapted.student.named_parameters():
            if "lora_B" in name:
                each.normal_()
    ids_BS = torch.arange(1, 9)[None]
    assert torch.equal(adapted.teacher.hidden(ids_BS), plain.hidden(ids_BS))
    student = LanguageModel(adapted.student, adapted.n_vocab)
    assert (student.hidden(ids_BS) - plain.hidden(ids_BS)).abs().max() > 0.1
    assert any(each.requires_grad for each in adapted.student.parameters())


def settings(own, *more):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check_config(compose("train", [*own, *more, "run.dir=runs/none", "run.name=x", "logger=csv"]))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["model.teacher=base"], "teacher=base: the student without adapters; wanted lora"),
        (["model.teacher={_target_:minillm.models.Checkpoint,source:ema,bits:4}"],
         "teacher=ema: the student itself, which has no bits"),
        (["model.teacher=ema", "model.ema_rate=1.0"], "ema_rate=1.0: wanted a number between 0 and 1"),
        (["model.teacher=start", "model.student={_target_:minillm.models.PrunedTeacher,keep_layers:[0]}"],
         "teacher=start: the student is made of a teacher's layers"),
        (["model.teacher=ema", "regime.inner_epochs=2"], "regime.teacher_states=keep with model.teacher=ema"),
        (["model.teacher=ema", "strategy=fsdp", "strategy.devices=2"], "model.teacher=ema with strategy=fsdp"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(own, more, text):
    with pytest.raises(ConfigError) as caught:
        settings(own, *more)
    assert text in str(caught.value)


@pytest.mark.parametrize("teacher", ["start", "ema"])
def test_the_same_prompts_are_refused_for_the_gradient_is_0(tmp_path, own, teacher):
    own = [*own, f"model.teacher={teacher}", "data.teacher_system=null"]
    with pytest.raises(ConfigError, match=rf"model\.teacher={teacher}: the student itself, on the same prompts"):
        train(tmp_path / "run", own)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_card_and_the_export_know_the_teacher(own):
    made = settings(own, "model.teacher=ema")
    assert "A student distilled from the student's moving average by" in card_text(made.plain)
    pair = made.model.load_student(torch.device("cpu"))
    assert pair.teacher is None and pair.stop_ids == made.model.load(torch.device("cpu")).stop_ids


@pytest.mark.parametrize(("recipe", "more"), [("opsd", []), ("context", ["data.teacher_system=why big"])])
def test_the_recipes_make_a_run(tmp_path, world, recipe, more):
    small = ["regime.rollouts=2", "regime.minibatch_size=2", "regime.max_steps=1", "sampler.max_new_tokens=4"]
    files = [f"data.train_file={world}/train.jsonl", f"data.val_file={world}/val.jsonl"]
    models = [f"model.student={world}/student", "callbacks.validation.max_new_tokens=4"]
    run = train(tmp_path / "run", [f"recipe={recipe}", *more, *small, *files, *models])
    assert all(map(len, run.datamodule.train_prompts.teacher_ids))
    page = (tmp_path / "run" / "preflight.md").read_text()
    assert "the student at the start" in page and "the teacher's own" in page
    assert run.module.step == 1 and rows(tmp_path / "run")[-1]
