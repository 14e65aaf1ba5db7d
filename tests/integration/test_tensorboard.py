"""logger=tensorboard: its event file read back by TensorBoard itself, and the message where the package is missing."""

import csv
import math
from importlib.util import find_spec

import pytest

from minillm.common.errors import ConfigError
from minillm.train import rules
from minillm.train.fit import train
from minillm.train.settings import check_config
from tests.conf.test_compose import composed

INSTALL = "pip install -r requirements-tensorboard.txt"
needs_it = pytest.mark.skipif(find_spec("tensorboard") is None, reason=f"no tensorboard: {INSTALL}")


def config(run_dir, overrides):
    cfg = composed(*overrides, "logger=tensorboard")
    cfg.run.dir = str(run_dir)
    return cfg


@needs_it
@pytest.mark.quick
def test_the_event_file_has_every_figure_of_metrics_csv(tmp_path, overrides):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(check_config(config(tmp_path, overrides)))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0})
    events.Reload()
    with open(tmp_path / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    names = set(rows[0]) - {"epoch"}
    assert found.keys() - {"epoch"} == names and {"val/reverse_kl", "train/loss", "memory/peak_gb"} <= names
    for name in names:
        wanted = [(float(row["progress/optimizer_step"]), float(row[name])) for row in rows if row[name]]
        assert len(found[name]) == len(wanted)
        for got, want in zip(found[name], wanted, strict=True):
            assert got[0] == want[0] and math.isclose(got[1], want[1], rel_tol=1e-6)  # stored as float32
    (text,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("settings"))
    assert b"max_steps: 6" in events.Tensors(text)[0].tensor_proto.string_val[0]


@pytest.mark.quick
def test_a_missing_package_is_one_message_before_work_starts(tmp_path, overrides, monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    plain = composed(*overrides, "logger=tensorboard")
    with pytest.raises(ConfigError) as error:
        check_config(plain)
    assert error.value.problems == [f"logger=tensorboard: tensorboard is not installed; {INSTALL}"]
    assert not any(tmp_path.iterdir())
