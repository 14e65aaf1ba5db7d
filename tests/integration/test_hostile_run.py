"""A run directory from elsewhere: no command imports or calls what its config.yaml names, or resolves what it holds."""

import shutil

import pytest
import yaml

from minillm.common.errors import ConfigError, ModelError
from minillm.common.stored import read_config
from minillm.compare import compare
from minillm.evaluation.report import write_report
from minillm.evaluation.suite.early import template_notes
from minillm.export import export
from minillm.train.resume import compare_settings
from tests.integration.test_resume import train

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef call(**given):\n    return {}\n"
LISTED = {"data": {"template": "chat", "system": None, "template_arguments": {}}}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, overrides):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(folder, [*overrides, "start.steps=0", "regime.max_steps=2", "callbacks.validation.every=2"])
    shutil.rmtree(folder / "student")
    return folder


@pytest.fixture
def copied(run_dir, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("copy", "other"):
        shutil.copytree(run_dir, tmp_path / "runs" / name)
    yield tmp_path / "runs" / "copy"
    assert not (tmp_path / "ran").exists()


def groups(node, path=()):
    """The paths of all mappings, in lists too."""
    if isinstance(node, dict):
        yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from groups(value, (*path, key))


def with_target(plain, place):
    if not place:
        return plain | {"_target_": "evil.call"}
    below = plain.get(place[0])
    return plain | {place[0]: with_target(below if isinstance(below, dict) else {}, place[1:])}


def read_everywhere(run):
    """By all commands that read settings and train nothing."""
    compare(run.parent, "val/reverse_kl")
    write_report(run)
    template_notes([f"{run}/student"], LISTED["data"])


def test_no_class_at_any_place_is_imported(copied, tmp_path):
    plain = read_config(copied / "config.yaml")
    places = [*groups(plain), ("model", "lora"), ("model", "student", "architecture"), ("callbacks", "more")]
    for number, place in enumerate(places):
        bad = with_target(plain, place)
        (copied / "config.yaml").write_text(yaml.safe_dump(bad))
        out = tmp_path / f"out{number}"
        if place[:1] == ("model",):
            with pytest.raises(
                ConfigError, match=r"config.yaml: model\S*\._target_='evil.call': wanted one of minillm"
            ):
                export(copied, out)
        else:
            export(copied, out)
        with pytest.raises(ConfigError, match=r"_target_: the run was made with 'evil.call', which is not of minillm"):
            compare_settings(copied, plain, {})
        compare_settings(copied, bad, {})  # named again
        if number % 20 == 0:
            read_everywhere(copied)


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        ("objective", "objective._target_='evil.call'"),
        ("logger", "logger._target_='evil.call'"),
        ("callbacks.more", r"\+callbacks.more._target_='evil.call'"),
    ],
)
def test_a_run_goes_on_with_a_class_of_ones_own_only_if_it_is_named_again(copied, overrides, key, typed):
    plain = read_config(copied / "config.yaml")
    node = plain
    for part in key.split("."):
        node = node.setdefault(part, {})
    node["_target_"] = "evil.call"
    (copied / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError, match=f"name it again, {typed}, or choose"):
        train(copied, [*overrides, "start.steps=0", "regime.max_steps=2"], resume="auto")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"_target_": "minillm.models.Lora"}, r"model._target_='minillm.models.Lora': wanted minillm.models.ModelPair"),
        ({"_target_": None}, r"model._target_=None: wanted minillm.models.ModelPair"),
        ({"_target_": ["os.system"]}, r"model._target_=\['os.system'\]: wanted one of"),
        ({"student": {"_target_": "minillm.models.Lora"}}, r"model.student._target_=minillm.models.Lora: wanted Check"),
        ({"student": [{"_target_": "os.system"}]}, r"model.student\[0\]._target_='os.system': wanted one of"),
        ({"student": "package:evil.sub"}, "package:evil.sub: .*the name of a package"),
        ({1: 2}, "model.1: no such key"),
    ],
)
def test_a_model_that_is_none_is_one_message(copied, tmp_path, model, text):
    plain = read_config(copied / "config.yaml")
    plain["model"] |= model
    (copied / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises((ConfigError, ModelError), match=text):
        export(copied, tmp_path / "out")


@pytest.mark.quick
def test_nothing_in_a_stored_config_is_resolved(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    plain = read_config(copied / "config.yaml")
    plain["model"]["teacher"] = {"_target_": "minillm.models.Checkpoint", "source": "${oc.env:HF_TOKEN}"}
    plain["run"]["name"] = "${oc.env:HF_TOKEN}"
    plain["logger"]["open"] = "${"
    (copied / "config.yaml").write_text(yaml.safe_dump(plain))
    export(copied, tmp_path / "out")
    read_everywhere(copied)
    made = [*tmp_path.glob("out/*"), *copied.rglob("report/*")]
    assert not any(b"very-secret" in file.read_bytes() for file in made if file.is_file())
    assert "${oc.env:HF_TOKEN}" in (tmp_path / "out" / "README.md").read_text()


def test_a_reward_function_in_a_stored_config_is_not_imported(copied, tmp_path):
    plain = read_config(copied / "config.yaml")
    (copied / "config.yaml").write_text(yaml.safe_dump(plain | {"reward": {"function": "evil.call"}}))
    export(copied, tmp_path / "out")
    read_everywhere(copied)
    with pytest.raises(ConfigError, match="reward.function: the run was made with 'evil.call', which is not of"):
        compare_settings(copied, plain, {})


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a: &x [1]\nb: [*x, *x]", "a: !!python/object/apply:os.system [ls]", "- 1"]
)
def test_a_config_that_cannot_be_read_is_one_message(copied, tmp_path, text):
    plain = read_config(copied / "config.yaml")
    (copied / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config.yaml: cannot be read \("):
        export(copied, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"cannot be read .* put it back, or choose another run.name"):
        compare_settings(copied, plain, {})
    compare(copied.parent, "val/reverse_kl")
    write_report(copied)
    assert template_notes([f"{copied}/student"], LISTED["data"]) == []


def test_text_that_looks_like_an_interpolation_stays_text(tmp_path, overrides):
    """The user typed it with the backslash that OmegaConf wants; the run goes on and is exported."""
    typed = [*overrides, "start.steps=0", r"data.system='Say \${x}'", "data.template=chat"]
    train(tmp_path / "run", [*typed, "regime.max_steps=2", "optim.schedule=constant"])
    assert read_config(tmp_path / "run" / "config.yaml")["data"]["system"] == "Say ${x}"
    train(tmp_path / "run", [*typed, "regime.max_steps=4", "optim.schedule=constant"], resume="auto")
    export(tmp_path / "run", tmp_path / "out")
    (note,) = template_notes([f"{tmp_path}/run/student"], LISTED["data"])
    assert r"data.system='Say \${x}'" in note  # what to type


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", f'{{"val/reverse_kl": {HUGE}}}'), ("metrics.json", '{"val/reverse_kl": 1e999}'),
        ("metrics.json", '{"val/reverse_kl": [1]}'), ("metrics.json", "[" * 100_000), ("config.yaml", f"seed: {HUGE}"),
        ("config.yaml", "a: ${"), ("config.yaml", "a: " + "[" * 20_000), ("config.yaml", "&a [*a]"),
        ("metrics.csv", f"progress/optimizer_step,train/loss\n1,{'9' * 200_000}\n2,0.5\n"),
    ],
)  # fmt: skip
def test_one_broken_run_ends_neither_comparison_nor_report(tmp_path, capsys, file, text):
    for name in ("good", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("{seed: 1, optimized_metric: val/reverse_kl}")
        (tmp_path / name / "metrics.json").write_text('{"val/reverse_kl": 0.5}')
        (tmp_path / name / "metrics.csv").write_text("progress/optimizer_step,train/loss\n1,0.7\n")
    (tmp_path / "odd" / file).write_text(text)
    compare(tmp_path)
    assert "good" in capsys.readouterr().out
    assert write_report(tmp_path / "odd").exists()
