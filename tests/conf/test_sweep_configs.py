"""Every point of every sweep composes and passes the checks; the file for W&B names keys that exist."""

import re

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from minillm.common.errors import ConfigError
from minillm.experiments.sweep import AroundSweep, check_sweep
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF, settings
from tests.unit.test_secret import TOKEN

SWEEPS = sorted(file.stem for file in CONF.glob("sweep/*.yaml"))


def params(name):
    return OmegaConf.load(CONF / "sweep" / f"{name}.yaml").hydra.sweeper.params


def points(name):
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params(name).items()])
    return BasicSweeper.split_arguments(overrides, None)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("ablations", "learning_rate") else pytest.mark.slow)
        for name in SWEEPS
        if name != "optuna"
    ],
)
def test_every_point_of_a_grid(name):
    """Over an experiment that sets some of the same keys."""
    made = [settings(f"sweep={name}", "experiment=narrow_minillm", *point) for point in points(name)]
    parts = [(each.sampler, each.objective, each.regulariser, each.optim) for each in made]
    assert len(parts) > 3 and all(parts[i] != parts[j] for i in range(len(parts)) for j in range(i))


def test_the_ablations_leave_out_one_thing_each():
    made = {
        file.stem: settings("experiment=narrow_minillm", f"ablation={file.stem}")
        for file in CONF.glob("ablation/*.yaml")
    }
    assert set(params("ablations").ablation.split(",")) == set(made)
    full = made.pop("full")
    plain = settings("experiment=narrow_minillm")
    assert all(getattr(full, group) == getattr(plain, group) for group in ("objective", "sampler", "regulariser"))

    def changed(each):
        return {
            f"{group}.{key}": value
            for group in ("objective", "sampler", "regulariser")
            for key, value in vars(getattr(each, group)).items()
            if vars(getattr(full, group))[key] != value
        }

    assert changed(made["no_length_norm"]) == {"objective.length_norm": False}
    assert changed(made["no_mixing"]) == {"sampler.alpha": 0.0}
    assert changed(made["no_single_step"]) == {"objective.single_step": False, "objective.skip_current": False}
    assert not made["no_corpus"].regulariser.on and all("regulariser" in key for key in changed(made["no_corpus"]))


def master(*overrides, folder):
    """What Hydra hands to its callbacks at the start of a sweep."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, "run.name=x"], return_hydra_config=True)
    cfg.hydra.sweep.dir = str(folder)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(("figure", "direction"), [("val/rouge_l", "maximize"), ("val/reverse_kl", "minimize")])
def test_the_direction_follows_what_is_optimised_and_may_not_contradict(tmp_path, figure, direction):
    good = master("sweep=optuna", f"optimized_metric={figure}", folder=tmp_path)
    assert good.hydra.sweeper.direction == direction
    check_sweep(good)
    other = {"maximize": "minimize", "minimize": "maximize"}[direction]
    bad = master("sweep=optuna", f"optimized_metric={figure}", f"hydra.sweeper.direction={other}", folder=tmp_path)
    with pytest.raises(ConfigError, match=f"hydra.sweeper.direction={other}.*wanted {direction}"):
        check_sweep(bad)


def test_a_sweep_does_not_take_the_directory_of_a_single_run(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="run.name=x.*holds a single run"):
        check_sweep(master("sweep=alpha", folder=tmp_path))


@pytest.mark.parametrize(
    ("override", "place"),
    [
        (f"data.system={TOKEN}", "data.system: holds what looks like a token or password"),
        (f"+hydra.launcher.setup=['export HF_TOKEN={TOKEN}']", r"hydra.launcher.setup\[0\]: holds"),
    ],
)
def test_a_sweep_with_a_secret_is_refused_before_anything_is_written(tmp_path, override, place):
    with pytest.raises(ConfigError, match=place) as caught:
        check_sweep(master("data.template=paper", override, folder=tmp_path / "x"))
    assert TOKEN not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_swept_secret_is_refused(tmp_path):
    """Values that are swept are not in the composed config, but among the overrides or the sweeper's."""
    cfg = master(folder=tmp_path / "x")
    cfg.hydra.overrides.task.append(f"data.system={TOKEN},b")
    with pytest.raises(ConfigError, match=r"hydra.overrides.task\[\d\]: holds what looks like a token or password"):
        check_sweep(cfg)
    cfg = master(folder=tmp_path / "x")
    cfg.hydra.sweeper.params = {"data.system": f"{TOKEN},b"}
    with pytest.raises(
        ConfigError, match=r"hydra.sweeper.params.data.system: holds what looks like a token or password"
    ):
        check_sweep(cfg)


def test_what_is_fixed_stays_out_of_names(tmp_path):
    cfg = master("sweep=alpha", "seed=1", "experiment=demo", folder=tmp_path)
    cfg.hydra.overrides.task += ["optim.learning_rate=1", "optim.learning_rate=1,2"]
    AroundSweep().on_multirun_start(cfg)
    excluded = cfg.hydra.overrides.hydra[-1]
    assert excluded == "hydra.job.config.override_dirname.exclude_keys=[experiment,run.name,seed,sweep]"


def test_the_file_for_wandb(monkeypatch):
    """Its command as W&B's agents make it, composed and checked for several draws."""
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "val/reverse_kl", "goal": "minimize"}
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    for pick in (0, -1):
        draw = {
            key: each.get("value", each["values"][pick] if "values" in each else each.get("min"))
            for key, each in sweep["parameters"].items()
        }
        macros = create_sweep_command_args({"args": {key: {"value": value} for key, value in draw.items()}})
        macros |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
        words = []
        for word in create_sweep_command(list(sweep["command"])):
            name = re.fullmatch(r"\$\{(.*)\}", word)
            words += macros[name[1]] if name else [word]
        assert words[:3] == ["/usr/bin/env", "python", "train.py"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*words[3:], "run.dir=/nowhere/x"])
        made = check_config(cfg)
        assert cfg.run.name == "wandb/abc123" and made.sampler.alpha == draw["sampler.alpha"]
        assert made.objective.length_norm is draw["objective.length_norm"]


def test_a_sweep_that_is_wrong_as_a_whole_ends_with_a_message(tmp_path, capsys):
    """Of an exception in a callback Hydra would make a warning."""
    with pytest.raises(SystemExit) as caught:
        AroundSweep().on_multirun_start(
            config=master("sweep=optuna", "hydra.sweeper.direction=maximize", folder=tmp_path / "x")
        )
    assert caught.value.code == 1 and "of val/reverse_kl (optimized_metric) less is better" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
