"""What a chain's stages were made with: an edited yaml is found, a chain may grow, and both before a stage begins."""

import functools
from types import SimpleNamespace

import pytest

from minillm import chain as commands
from minillm.common.child import Children
from minillm.common.errors import ConfigError, MinillmError
from minillm.experiments.stages import run_chain
from tests.unit.test_recipe_commands import PLAIN, planned


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """Composing a config is most of the time here."""
    once = functools.cache(commands.composed)
    monkeypatch.setattr(commands, "composed", lambda config, words: once(config, tuple(words)))


@pytest.fixture
def calls(monkeypatch):
    """The stages that are begun; each leaves the settings and the result that its command would."""
    begun = []

    def start(children, name, command, log, **options):
        begun.append(name)
        log.touch()
        children.running[name], children.began[name] = SimpleNamespace(pid=1), 0.0
        folder, written = log.parents[1] / name, {"answers": "answers.jsonl", "test": "metrics.json"}
        folder.mkdir(exist_ok=True)
        if name not in written:
            (folder / "config.yaml").touch()
            (folder / "student").mkdir(exist_ok=True)
        (folder / written.get(name, "student/weights")).write_text(f"{name} {len(begun) if name == 'test' else ''}")

    monkeypatch.setattr(Children, "start", start)
    monkeypatch.setattr(Children, "next_ended", lambda children: (children.running.popitem()[0], 0))
    return begun


def stages(run_dir, **changed):
    (run_dir / "t.jsonl").touch()
    (run_dir / "u.jsonl").touch()
    return list(planned(PLAIN | {"tests": [f"{run_dir}/t.jsonl"]} | changed, run_dir).values())


def edited(stages, name, group, **values):
    """As after an edit of a yaml: the words of the command are the same."""
    [stage] = [each for each in stages if each.name == name]
    stage.settings[group] = stage.settings[group] | values if group else values
    return stages


def test_an_edited_yaml_is_refused_for_all_stages_before_one_begins(tmp_path, calls):
    made = stages(tmp_path)
    run_chain(tmp_path, made)
    assert calls == [stage.name for stage in made]
    calls.clear()
    run_chain(tmp_path, stages(tmp_path))
    assert not calls
    found = edited(stages(tmp_path, seeds=[1, 0]), "sft-0", "optim", learning_rate=0.5)
    edited(found, "kd-0", "callbacks", record=found[0].settings["callbacks"]["record"] | {"export": "other"})
    next(each for each in found if each.name == "answers").settings["temperature"] = 0.7
    with pytest.raises(ConfigError) as caught:
        run_chain(tmp_path, found)
    assert [problem.removeprefix(f"{tmp_path}/").split(". Delete")[0] for problem in caught.value.problems] == [
        "answers: temperature was 1.0, is 0.7 now",
        "sft-0: optim.learning_rate was 0.003, is 0.5 now",
        f"kd-0: callbacks.record.export was {made[0].settings['callbacks']['record']['export']!r}, is 'other' now",
    ]
    assert not calls
    run_chain(tmp_path, edited(stages(tmp_path), "sft-0", "strategy", devices=8))  # other rounding
    assert not calls


def test_what_was_cut_off_goes_on_with_the_same_settings_or_other_rounding(tmp_path, calls):
    made = stages(tmp_path, methods=["sft"])
    run_chain(tmp_path, made)
    for file in (tmp_path / "sft-0" / "student").iterdir():
        file.unlink()
    (tmp_path / "sft-0" / "student").rmdir()
    calls.clear()
    before = made[1].settings["optim"]
    with pytest.raises(ConfigError, match="sft-0: optim.learning_rate was 0.003, is 0.5 now"):
        run_chain(tmp_path, edited(made, "sft-0", "optim", learning_rate=0.5))
    edited(made, "sft-0", "optim", **before)
    run_chain(tmp_path, edited(made, "sft-0", "strategy", devices=8))
    assert calls == ["sft-0"]


@pytest.mark.slow
def test_a_chain_grows(tmp_path, calls):
    """By a seed, a method and a test file: what is there stays, the evaluation goes on."""
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    calls.clear()
    run_chain(tmp_path, stages(tmp_path, methods=["sft", "kd"], seeds=[0, 1]))
    assert calls == ["kd-0", "sft-1", "kd-1", "test"]
    calls.clear()
    run_chain(tmp_path, stages(tmp_path, methods=["sft"], tests=[f"{tmp_path}/t.jsonl", f"{tmp_path}/u.jsonl"]))
    assert calls == ["test"]


@pytest.mark.slow
def test_what_a_grown_evaluation_would_refuse_is_refused_before_the_first_stage(tmp_path, calls):
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    calls.clear()
    with pytest.raises(ConfigError, match=r"test: seeds was \[10, 20\], is \[10, 20, 30\] now"):
        run_chain(tmp_path, stages(tmp_path, methods=["sft"], seeds=[0, 1], test_seeds=[10, 20, 30]))
    (tmp_path / "t.jsonl").write_text("other rows")
    with pytest.raises(ConfigError, match="t.jsonl has changed"):
        run_chain(tmp_path, stages(tmp_path, methods=["sft"], seeds=[0, 1]))
    assert not calls


def test_a_grown_evaluation_that_was_killed_early_leaves_no_figures_of_before(tmp_path, calls, monkeypatch):
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    grown = stages(tmp_path, methods=["sft"], tests=[f"{tmp_path}/t.jsonl", f"{tmp_path}/u.jsonl"])
    with monkeypatch.context() as patch:
        patch.setattr(Children, "next_ended", lambda _: (_.running.popitem()[0], -9))
        with pytest.raises(MinillmError):
            run_chain(tmp_path, grown)
    calls.clear()
    run_chain(tmp_path, grown)
    assert calls == ["test"]
