"""What a chain's stages were made with: an edited yaml is found, a chain may grow, and both before a stage begins."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from minillm.common.errors import ConfigError, Interrupted
from minillm.experiments.children import Children
from minillm.experiments.stages import run_chain
from tests.unit.test_recipe_commands import PLAIN, planned


@pytest.fixture
def calls(monkeypatch):
    """The stages that are begun; each leaves the settings and the result that its command would."""
    begun = []

    def begin(children, stage, title, command, log, last):
        begun.append(stage.name)
        children.running.append(SimpleNamespace(name=stage.name))
        folder = log.parents[1] / stage.name
        folder.mkdir(exist_ok=True)
        if stage.config == "train":
            OmegaConf.save(OmegaConf.create(stage.settings), folder / "config.yaml")
            (folder / "student").mkdir(exist_ok=True)
            (folder / "student" / "weights").write_text(stage.name)
        else:
            assert not (folder / stage.result).exists()
            left = {key: value for key, value in stage.settings.items() if key not in ("run", "device", "wandb")}
            left |= {"dtype": "float32", "content": {}}
            (folder / "settings.json").write_text(json.dumps(left))
            (folder / stage.result).write_text(str(len(begun)))

    monkeypatch.setattr(Children, "begin", begin)
    monkeypatch.setattr(Children, "next_ended", lambda children: (children.running.pop().name, 1.0))
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


def test_what_was_cut_off_is_compared_once_it_has_a_checkpoint(tmp_path, calls):
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    (tmp_path / "sft-0" / "student" / "weights").unlink()
    (tmp_path / "sft-0" / "student").rmdir()
    longer = edited(stages(tmp_path, methods=["sft"]), "sft-0", "optim", learning_rate=0.5)
    (tmp_path / "sft-0" / "checkpoints").mkdir()
    (tmp_path / "sft-0" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ConfigError, match="sft-0: optim.learning_rate was 0.003, is 0.5 now"):
        run_chain(tmp_path, longer)
    (tmp_path / "sft-0" / "checkpoints" / "last.ckpt").unlink()
    calls.clear()
    run_chain(tmp_path, [stage for stage in longer if stage.name != "test"])
    assert calls == ["sft-0"]


def test_a_chain_grows(tmp_path, calls):
    """By a seed, a method and a test file: what is there stays, the evaluation goes on."""
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    calls.clear()
    run_chain(tmp_path, stages(tmp_path, methods=["sft", "kd"], seeds=[0, 1]))
    assert calls == ["kd-0", "sft-1", "kd-1", "test"]
    calls.clear()
    run_chain(tmp_path, stages(tmp_path, methods=["sft"], tests=[f"{tmp_path}/t.jsonl", f"{tmp_path}/u.jsonl"]))
    assert calls == ["test"]


def test_what_a_grown_evaluation_would_refuse_is_refused_before_the_first_stage(tmp_path, calls):
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    calls.clear()
    with pytest.raises(ConfigError, match=r"test: seeds was \[10, 20\], is \[10, 20, 30\] now"):
        run_chain(tmp_path, stages(tmp_path, methods=["sft"], seeds=[0, 1], test_seeds=[10, 20, 30]))
    (tmp_path / "t.jsonl").write_text("other rows")
    with pytest.raises(ConfigError, match="t.jsonl is another"):
        run_chain(tmp_path, stages(tmp_path, methods=["sft"], seeds=[0, 1]))
    assert not calls


def test_a_grown_evaluation_that_was_killed_early_leaves_no_figures_of_before(tmp_path, calls, monkeypatch):
    run_chain(tmp_path, stages(tmp_path, methods=["sft"]))
    grown = stages(tmp_path, methods=["sft"], tests=[f"{tmp_path}/t.jsonl", f"{tmp_path}/u.jsonl"])
    with monkeypatch.context() as patch:
        patch.setattr(Children, "begin", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Interrupted):
            run_chain(tmp_path, grown)
    calls.clear()
    run_chain(tmp_path, grown)
    assert calls == ["test"]
