"""Run directories are read as they are found: half written, broken, of other runs."""

import pytest

from minillm.common.errors import ConfigError
from minillm.common.read import RunFiles, find_runs, higher_is_better, read_figures, read_job_settings, read_rows

HEADER = "progress/optimizer_step,val/reverse_kl,train/loss\n"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("2,0.5,\n4,0.4,\n", [2, 4]),
        ("2,0.5,\n4,0.4", [2]),  # perhaps 0.45 once it is written
        ("2,0.5,\n4,", [2]),
        ("2,0.5,\n4,zero,\n6,0.3,\n", [2, 6]),
        (",0.5,\n4,0.4,1,9,9\n", []),  # no step; more fields than columns
        ("", []),
    ],
)
def test_only_whole_rows_count(tmp_path, text, steps):
    (tmp_path / "metrics.csv").write_text(HEADER + text)
    assert [row["progress/optimizer_step"] for row in read_rows(tmp_path / "metrics.csv")] == steps
    assert list(read_rows(tmp_path / "none.csv")) == []


def test_states(tmp_path):
    def run(name, **files):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("a: 1\n")
        for file, text in files.items():
            (tmp_path / name / file.replace("_", ".")).write_text(text)
        return RunFiles.read(tmp_path / name)

    assert run("done", metrics_json='{"val/x": 1.0}').state == "finished"
    assert run("cut").state == "unfinished"
    failed = run("failed", error_txt="Error: loss is nan\n\nThe command: x\n")
    assert (failed.state, failed.note) == ("failed", "loss is nan")
    (tmp_path / "odd" / "error.txt").mkdir(parents=True)
    assert "error.txt: cannot be read (Is a directory)" in RunFiles.read(tmp_path / "odd").note
    broken = run("broken", metrics_json='{"val/x": ')
    assert broken.state == "unfinished" and "metrics.json: damaged (" in broken.note
    with pytest.raises(ValueError, match="got list, wanted values by name"):
        (tmp_path / "cut" / "metrics.json").write_text("[1]")
        read_figures(tmp_path / "cut")


def test_runs_are_found_at_any_depth_but_not_inside_of_runs(tmp_path):
    for name in ("a", "sweep/x", "sweep/y", "a/wandb/files", "sweep/.trials"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
    assert [str(each.relative_to(tmp_path)) for each in find_runs(tmp_path)] == ["a", "sweep/x", "sweep/y"]


@pytest.mark.parametrize(
    ("figure", "higher"),
    [("val/rouge_l", True), ("val/reverse_kl", False), ("best/reverse_kl", False), ("val/length", None),
     ("val/rouge_l_start", True)],
)  # fmt: skip
def test_which_way_is_better(figure, higher):
    assert higher_is_better(figure) is higher


def test_settings_of_a_job_are_whole_or_an_error(tmp_path):
    assert read_job_settings(tmp_path) is None
    (tmp_path / "settings.json").write_text('{"seed": 1}')
    assert read_job_settings(tmp_path) == {"seed": 1}
    for text in ("[1]", '{"seed": '):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ConfigError, match=r"settings.json: damaged .* choose another run.name"):
            read_job_settings(tmp_path)
