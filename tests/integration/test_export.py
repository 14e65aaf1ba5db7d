"""python -m minillm.export: a run's checkpoints as Hugging Face directories, and mistakes."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.common import cli
from minillm.common.errors import ConfigError, ModelError, StorageError
from minillm.export import export, main
from minillm.train.card import card_text
from tests.integration.test_resume import train
from tests.tiny import make_model


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, overrides):
    """A run whose best step (0: the learning rate is far too high) is not its last, and whose student/ is the best."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(folder, [*overrides, "start.steps=0", "regime.max_steps=4", "optim.learning_rate=1"])
    assert json.loads((folder / "metrics.json").read_text())["best/step"] == 0
    return folder


@pytest.fixture
def copied(run_dir, tmp_path):
    """The run without what its end wrote, as if it had been killed; to change at will."""
    shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "student")
    (tmp_path / "copy" / "metrics.json").unlink()
    return tmp_path / "copy"


def weights(directory):
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def student(saved):
    return {name.removeprefix("student."): value for name, value in saved["state_dict"].items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.quick
def test_a_run_directory_is_its_best_weights(run_dir, copied, tmp_path):
    (tmp_path / "out").mkdir()
    export(copied, tmp_path / "out", command="the command")
    assert same(weights(tmp_path / "out"), weights(run_dir / "student"))
    files = {file.name for file in (run_dir / "student").iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files
    for name in files - {"README.md", "model.safetensors"}:
        assert (tmp_path / "out" / name).read_text() == (run_dir / "student" / name).read_text()
    card, own = ((folder / "README.md").read_text() for folder in (tmp_path / "out", run_dir / "student"))
    assert "by:\n\n```\nthe command\n```" in card and "# test" in card
    # Same teacher, weights and figures in both.
    assert [line for line in card.splitlines() if "|" in line] == [line for line in own.splitlines() if "|" in line]
    assert "| reverse_kl |" in card and AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_the_teacher_is_not_loaded_and_may_be_one_for_a_gpu(run_dir, copied, tmp_path):
    plain = yaml.safe_load((copied / "config.yaml").read_text())
    teacher = plain["model"]["teacher"]
    source = teacher if isinstance(teacher, str) else teacher["source"]
    plain["model"]["teacher"] = {"_target_": "minillm.models.Checkpoint", "source": source, "bits": 4}
    (copied / "config.yaml").write_text(yaml.safe_dump(plain))
    export(copied, tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(run_dir / "student"))
    ends, own = ((folder / "generation_config.json").read_text() for folder in (tmp_path / "out", run_dir / "student"))
    assert ends == own


def test_an_export_that_fails_leaves_nothing_and_the_next_one_works(copied, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", lambda *_: (_ for _ in ()).throw(OSError))
        for name in ("out", "empty"):
            with pytest.raises(OSError):
                export(copied, tmp_path / name)
    assert {each.name for each in tmp_path.iterdir()} == {"copy", "empty"} and not any((tmp_path / "empty").iterdir())
    (tmp_path / "empty" / ".new").mkdir()  # as a kill leaves it
    export(copied, tmp_path / "empty")
    assert "model.safetensors" in {each.name for each in (tmp_path / "empty").iterdir()}


def test_a_file_is_its_own_weights_with_the_figures_of_its_own_validation(copied, tmp_path):
    export(copied / "checkpoints" / "last.ckpt", tmp_path / "out")
    saved = torch.load(copied / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(weights(tmp_path / "out"), student(saved))
    figure = saved["callbacks"]["Validation"]["stages"]["last"]["reverse_kl"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| reverse_kl | {figure:.4g} |" in card and "| weights | last |" in card
    best = torch.load(copied / "checkpoints" / "best.ckpt", weights_only=True)
    assert not same(student(best), student(saved))

    saved["callbacks"]["Validation"]["newest_step"] = 2  # of other weights than these
    torch.save(saved, copied / "checkpoints" / "last.ckpt")
    export(copied / "checkpoints" / "last.ckpt", tmp_path / "other")
    assert "reverse_kl |" not in (tmp_path / "other" / "README.md").read_text()
    (copied / "checkpoints" / "last.ckpt").unlink()
    export(copied / "checkpoints" / "best.ckpt", tmp_path / "third")
    assert "reverse_kl |" not in (tmp_path / "third" / "README.md").read_text()


def test_what_is_there_is_not_touched(run_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="there is something already; wanted a new or an empty directory"):
        export(run_dir, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda run: shutil.rmtree(run), ConfigError, "no such file; wanted a run directory or its checkpoints"),
        (lambda run: shutil.rmtree(run / "checkpoints"), ConfigError, "no checkpoints/best.ckpt or checkpoints/last"),
        (lambda run: (run / "config.yaml").unlink(), ConfigError, "config.yaml, which says what model it is"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), ConfigError, "config.yaml: cannot be read"),
        (lambda run: (run / "config.yaml").write_text("a: 1"), ConfigError, "no group model"),
        (lambda run: (run / "checkpoints/best.ckpt").write_text("x"), ModelError, "best.ckpt: not a checkpoint"),
        (lambda run: (run / "checkpoints/best.ckpt").write_bytes(b""), ModelError, "best.ckpt: not a checkpoint"),
        (
            lambda run: torch.save(make_model().state_dict(), run / "checkpoints/best.ckpt"),
            ModelError,
            "no student inside; wanted a checkpoint of train.py",
        ),
        (lambda run: torch.save([1], run / "checkpoints/best.ckpt"), ModelError, "no student inside"),
    ],
)
def test_what_is_not_a_run_is_one_clear_error(copied, tmp_path, change, error, text):
    change(copied)
    with pytest.raises(error, match=text):
        export(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What 19f80da wrote into config.yaml in the place of today's names.
OLD = {
    "minillm.train.start.SupervisedStart": "minillm.modules.SupervisedStart",
    "minillm.train.regime.OnPolicy": "minillm.modules.OnPolicy",
    "minillm.train.optim.Optim": "minillm.optim.Optim",
    "minillm.train.callbacks.": "minillm.callbacks.",
    "minillm.rollout.Sampler": "minillm.sampling.Sampler",
    "minillm.objectives.linear_loss.LinearLoss": "minillm.linear_loss.LinearLoss",
}


def test_a_run_of_an_older_version_is_exported_and_does_not_go_on(run_dir, copied, tmp_path, overrides):
    text = (copied / "config.yaml").read_text()
    for now, then in OLD.items():
        assert now in text
        text = text.replace(now, then)
    (copied / "config.yaml").write_text(text)
    (copied / "begun.json").unlink()  # an older version wrote none
    options = [*overrides, "start.steps=0", "regime.max_steps=4", "optim.learning_rate=1"]
    with pytest.raises(ConfigError, match="was made by another version of minillm .* or choose another run.name"):
        train(copied, options, resume="auto")
    export(copied, tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(run_dir / "student"))


def test_a_run_with_keys_that_another_version_had_is_named_as_such(copied, overrides):
    (copied / "config.yaml").write_text((copied / "config.yaml").read_text() + "profile: false\n")
    options = [*overrides, "start.steps=0", "regime.max_steps=2"]
    with pytest.raises(ConfigError, match="profile='absent': the run was made with False"):
        train(copied, options, resume="auto")
    (copied / "begun.json").unlink()
    with pytest.raises(ConfigError, match="made by another version of minillm .* profile was False, is 'absent' now"):
        train(copied, options, resume="auto")


def test_weights_of_another_model_and_a_wrong_model_section(copied, tmp_path, world):
    right = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(right.replace(f"{world}/student", f"{world}/teacher"))
    with pytest.raises(
        ModelError, match=r"not of the model that .*config.yaml describes: 9 weights missing \(student.model.lay"
    ):
        export(copied, tmp_path / "out")
    (copied / "config.yaml").write_text(right.replace("attention: sdpa", "attention: fast"))
    with pytest.raises(ConfigError, match="config.yaml: model.attention='fast': wanted one of"):
        export(copied, tmp_path / "out")
    (copied / "config.yaml").write_text(right)
    saved = torch.load(copied / "checkpoints" / "best.ckpt", weights_only=True)
    saved["state_dict"]["student.lm_head.weight"] = torch.zeros(5, 32)
    saved["state_dict"]["student.extra"] = torch.zeros(1)
    torch.save(saved, copied / "checkpoints" / "best.ckpt")
    with pytest.raises(
        ModelError, match=r"1 weights unknown \(student.extra\), 1 weights of another shape \(student.lm_head"
    ):
        export(copied, tmp_path / "out")


def test_a_mistake_is_status_1_and_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        cli.run(main, "train")
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"Error: CHECKPOINT={tmp_path / 'none'}: no such file")


def test_an_export_is_pushed_with_a_card_for_its_place(copied, tmp_path, monkeypatch, capsys, hub):
    terms = ["--push-to-hub", "me/mine", "--license", "mit", "--language", "en", "de"]
    monkeypatch.setattr(sys, "argv", ["export", str(copied), str(tmp_path / "out"), *terms])
    main()
    assert f"and {hub.address}/me/mine" in capsys.readouterr().out and hub.made[0]["visibility"] == "private"
    assert hub.files.keys() == {file.name for file in (tmp_path / "out").iterdir()}
    assert hub.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    assert 'from_pretrained("me/mine")' in card and "license: mit\n" in card and str(tmp_path) not in card
    assert "python -m minillm.export copy out --push-to-hub me/mine" in card


def test_a_push_that_cannot_be_made_is_answered_before_the_model_is_loaded(copied, tmp_path, monkeypatch, hub):
    hub.refuse["/repos/create"] = 403
    monkeypatch.setattr("minillm.models.ModelPair.load_student", lambda *_: pytest.fail("loaded"))
    with pytest.raises(StorageError, match="the hub answers 403"):
        export(copied, tmp_path / "out", push_to_hub="me/mine")
    with pytest.raises(ConfigError, match="license, language: got 'My Own'"):
        export(copied, tmp_path / "out", license="My Own")
    assert not (tmp_path / "out").exists()


def test_the_card_of_a_config_that_says_little():
    plain = {"model": {"teacher": "T"}, "objective": {}, "data": {}}
    assert "by MiniLLM" in card_text(plain)
    own = plain | {"objective": {"_target_": "own.Loss"}}
    assert "A student distilled from `T` by the objective Loss." in card_text(own)
