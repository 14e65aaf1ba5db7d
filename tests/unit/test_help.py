"""--help shows what a command's own yaml says, every key of it."""

import sys

import pytest
from omegaconf import OmegaConf

from minillm.common import cli
from minillm.common.changes import flat


@pytest.mark.parametrize("name", ["chain", "generate", "evaluate", "plan"])
def test_every_key_of_its_own_with_its_default_and_nothing_of_train(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    cli.run(lambda: pytest.fail("the command has begun"), name)
    out = capsys.readouterr().out
    shown = dict(
        line.split()[0].split("=", 1) for line in out.splitlines() if line.startswith("  ") and "=" in line.split()[0]
    )
    own = flat(OmegaConf.to_container(OmegaConf.load(cli.conf_of(name) / f"{name}.yaml")))
    own = {key.replace("model.student", "model").replace("model.teacher", "model") for key in own}
    own = {key for key in own if not key.startswith(("defaults", "hydra")) and "_target_" not in key} - {"run.dir"}
    groups = {"plan": set(), "chain": set()}.get(name, {"data"})
    assert own | groups <= shown.keys() and ("suite" in shown) <= (name == "evaluate")
    assert not {"experiment", "sampler", "override", "regime.max_steps", "hydra.run"} & shown.keys()
    assert name != "evaluate" or shown["run.name"] == "evaluate_TIME"
    assert name not in ("generate", "evaluate") or "or dolly, minillm_dolly; its keys data.*" in out


def test_comments_stand_beside_their_keys(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chain", "-h"])
    cli.run(None, "chain")
    out = capsys.readouterr().out
    assert any(line.split() == "test_batch_size=64 rows decoded at a time".split() for line in out.splitlines())
    assert out.startswith("python -m minillm.chain pair=")
