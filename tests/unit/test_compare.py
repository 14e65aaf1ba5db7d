"""The comparison of runs: what differs, what it did, and what is wrong with a directory; the picture is drawn."""

import json
import sys

import matplotlib.image
import pytest
import yaml
from rich.console import Console

from minillm.common import cli
from minillm.common.errors import ConfigError, DataError
from minillm.compare import choose_figure, compare, differing, main, read_runs, value_of


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """gamma x length_norm with val/reverse_kl = 1 - gamma + (not norm) / 2; one failed, one cut off."""
    monkeypatch.setenv("COLUMNS", "300")  # no line is folded
    for number, (gamma, norm) in enumerate([(g, n) for g in (1.0, 0.9, 0.5) for n in (True, False)]):
        folder = tmp_path / f"trial{number}"
        folder.mkdir()
        config = {"optimized_metric": "val/reverse_kl", "run": {"name": folder.name}, "seed": 1}
        config["objective"] = {"gamma": gamma, "length_norm": norm}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        value = round(1 - gamma + (not norm) / 2, 6)
        rows = [(step, value + 1 / (1 + step)) for step in (0, 2)] + [(4, value)]
        lines = "".join(f"{step},{each}\n" for step, each in rows)
        (folder / "metrics.csv").write_text("progress/optimizer_step,val/reverse_kl\n" + lines)
        figures = {"val/reverse_kl": value, "val/rouge_l": 10 * gamma, "steps": 4}
        if number == 4:
            (folder / "error.txt").write_text("Error: loss is nan\n\nThe command: x\n")
        elif number != 5:
            (folder / "metrics.json").write_text(json.dumps(figures))
    return tmp_path


def shown(capsys):
    return capsys.readouterr().out


def test_the_table_is_sorted_and_names_what_is_not_finished(sweep, capsys):
    file = compare(sweep)
    out = shown(capsys)
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("trial") and ":" not in line]
    assert [row[0] for row in rows] == ["trial0", "trial2", "trial1", "trial3", "trial5", "trial4"]
    assert rows[0][1:] == ["finished", "0", "10", "1", "true"]
    assert rows[3][1] == "finished" and rows[4][1:3] == ["unfinished", "1"] and rows[5][1] == "failed"
    assert "objective.length_norm, mean val/reverse_kl: false: 0.7 (of 3); true: 0.05 (of 2)" in out
    assert "trial4 failed: loss is nan" in out
    picture = matplotlib.image.imread(file)
    assert file == sweep / "compare.png" and picture.shape[0] > 600 and picture.std() > 0.01


def test_another_figure_turns_the_order(sweep, capsys):
    compare(sweep, "val/rouge_l", ["objective.gamma"])
    rows = [line.split()[0] for line in shown(capsys).splitlines() if line.strip().startswith("trial")]
    assert rows[0] in ("trial0", "trial1")


def test_only_what_differs_counts(sweep):
    runs = read_runs(sweep)
    assert differing(runs) == ["objective.gamma", "objective.length_norm"]
    assert choose_figure(runs, None) == "val/reverse_kl"
    assert value_of(runs[4], "val/reverse_kl") is None  # the curve of a failed run is no result
    assert value_of(runs[5], "val/reverse_kl") == 1.0


@pytest.fixture
def mixed(tmp_path):
    """Runs of which each is another thing: 40 settings, half of them in some runs only, with long values."""
    for number in range(6):
        folder = tmp_path / f"group-{number // 3}" / f"a-run-with-a-name-of-thirty-{number}-and-more"
        folder.mkdir(parents=True)
        config = {"run": {"name": folder.name}, "optim": {"learning_rate": 10.0 ** (-2 - number // 2)}}
        config["data"] = {"train_file": f"/data/somewhere/far/below/version-{number % 2}/train.jsonl"}
        config["much"] = {f"key_{each:02}": f"{each} {'long ' * 5}" for each in range(40) if number % 2 or each % 2}
        (folder / "config.yaml").write_text(json.dumps(config))
        (folder / "metrics.json").write_text(json.dumps({"val/reverse_kl": 12345.0 + number, "val/rouge_l": 1.5}))
    return tmp_path


@pytest.mark.parametrize("columns", [80, 120])
def test_many_settings_are_readable_in_few_columns(mixed, monkeypatch, capsys, columns):
    monkeypatch.setattr("minillm.compare.get_console", lambda: Console(width=columns))
    compare(mixed)
    out = shown(capsys)
    lines = out.splitlines()
    rows = [line for line in lines if line.startswith("  group-")]
    assert len(rows) == 6 and all(len(row.rstrip()) <= columns for row in rows)  # no name or value breaks
    heading = next(line for line in lines if line.split()[:1] == ["run"]).split()
    assert heading == ["run", "reverse_kl", "rouge_l", "learning_rate"] + ["train_file"] * (columns == 120)
    assert [row.split()[1:4] for row in rows] == [
        [f"{12345 + n:,}", "1.5", f"{10.0 ** (-2 - n // 2):g}"] for n in range(6)
    ]
    rest = next(line for line in lines if "more settings differ" in line)
    assert rest.startswith(f"{20 + (columns == 80)} more settings differ (--settings KEY,... chooses): ")
    assert ("data.train_file" in rest) is (columns == 80) and "much.key_02" in rest


def test_named_settings_that_do_not_fit_are_listed(mixed, monkeypatch, capsys):
    monkeypatch.setattr("minillm.compare.get_console", lambda: Console(width=80))
    compare(mixed, None, ["data.train_file", "optim.learning_rate", "run.name"])
    out = shown(capsys)
    table, _, rest = out.partition("more settings differ")
    assert "learning_rate" in table and "data.train_file" in rest
    assert "optim.learning_rate, mean" in out and "run.name, mean" not in out  # a mean of one run is none


def test_a_broken_file_is_named_and_the_others_are_compared(sweep, capsys):
    (sweep / "trial0" / "metrics.json").write_text('{"val/reverse_kl": 0')
    (sweep / "trial1" / "config.yaml").write_text("a: [")
    compare(sweep)
    out = " ".join(shown(capsys).split())
    assert "metrics.json: damaged (" in out and "trial1/config.yaml: cannot be read" in out and "6 runs" in out


def test_the_picture_replaces_a_link_and_not_what_it_points_to(sweep):
    (sweep / "victim").write_text("precious")
    (sweep / "compare.png").symlink_to(sweep / "victim")
    matplotlib.image.imread(compare(sweep))
    assert (sweep / "victim").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["empty"], "empty: no run in it"),
        (["single"], "single: one run only"),
        ([".", "--metric", "val/rouge"], "--metric val/rouge: no run has it; did you mean val/rouge_l?"),
        ([".", "--settings", "objective.gama"], "--settings objective.gama: no run has it; did you mean"),
    ],
)
def test_mistakes_are_one_message(sweep, monkeypatch, capsys, arguments, text):
    (sweep / "empty").mkdir()
    (sweep / "single").mkdir()
    (sweep / "single" / "config.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(sweep)
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.run(main, "train")
    error = capsys.readouterr().err
    assert caught.value.code == 1 and text in error and "Traceback" not in error


def test_runs_without_a_validation_have_nothing_to_compare(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(DataError, match="no run has been validated yet"):
        compare(tmp_path)
    with pytest.raises(ConfigError, match="--metric val/x"):
        (tmp_path / "a" / "metrics.json").write_text('{"val/y": 1}')
        compare(tmp_path, "val/x")
