"""The page that a run draws while it is at work: when, whole, and at no risk to the run."""

import json
import re
from types import SimpleNamespace

import pytest

import minillm.evaluation.report
from minillm.evaluation.report import write_report
from minillm.train.callbacks import Report
from tests.integration.test_resume import Killed, train
from tests.unit.test_report import embedded

# Validations: raw, start, and behind steps 2, 4 and 6.
EVERY_2 = ["callbacks.report.every=2", "callbacks.checkpoints.monitor=reverse_kl"]


@pytest.fixture
def drawn(monkeypatch):
    """The pages as they lay there after each drawing, and whether they are the last."""
    pages = []

    def draw(run_dir, so_far=None):
        file = write_report(run_dir, so_far=so_far)
        pages.append((file.read_text(), so_far is None, sorted(each.name for each in file.parent.iterdir())))
        return file

    monkeypatch.setattr(minillm.evaluation.report, "write_report", draw)
    return pages


@pytest.fixture
def at_work(overrides):
    return [each for each in overrides if not each.startswith("callbacks.report")] + EVERY_2


def facts(page: str) -> dict[str, str]:
    return dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))


@pytest.mark.quick
def test_a_page_comes_once_in_n_validations_and_all_files_at_the_end(tmp_path, at_work, world, drawn):
    train(tmp_path, at_work)
    assert [last for _, last, _ in drawn] == [False, False, True]
    first, second, end = (facts(page) for page, _, _ in drawn)
    assert first["State"].startswith("at work; drawn ") and end["State"] == "finished"
    steps = [each["Optimizer steps"] for each in (first, second, end)]
    assert steps == [f"{n} of 6, after 2 supervised" for n in (0, 4, 6)]
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert end["Best step"] == f"{figures['best/step']} (by reverse_kl)" and end["Rollouts"] == "3"
    assert first["Rouge-L is against"] == "the references"
    assert [files for _, _, files in drawn] == [["index.html", "table.csv"]] * 2 + [
        ["index.html", "plots", "table.csv"]
    ]
    assert len(list(tmp_path.glob("report/plots/*.png"))) > 10
    for page, _, _ in drawn:
        assert page.rstrip().endswith("</html>") and str(tmp_path) not in page and str(world) not in page
    answers = [json.loads(embedded(page, "samples-data"))["models"] for page, _, _ in drawn]
    assert [each["label"] for each in answers[1]] == ["teacher (greedy)", "raw", "start", "step 2", "step 4"]
    texts = ("Rollouts: length", "Validation: Reverse KL", "Diagnostics", "Training: L_PT, added to the loss")
    assert all(text in drawn[1][0] for text in texts)


def test_steps_on_the_page_are_those_of_the_screen(tmp_path, at_work, drawn):
    """metrics.csv counts the supervised start too: 2 steps."""
    train(tmp_path, at_work)
    points = json.loads(embedded(drawn[-1][0], "data"))["plots"]["curve-Validation_Reverse_KL_nats_a_token"]
    assert [x for x, _ in points["series"][0]["points"]] == [-2, 0, 2, 4, 6]


@pytest.mark.parametrize(("rounds", "steps"), [(2, ["4", "6"]), (3, ["6"])])
def test_a_run_that_goes_on_counts_the_validations_before(tmp_path, at_work, drawn, rounds, steps):
    with pytest.raises(Killed):
        train(tmp_path, at_work, kill_after=rounds)  # its third validation is behind the second round
    del drawn[:]
    train(tmp_path, at_work, resume="auto")
    assert [facts(page)["Optimizer steps"][:1] for page, _, _ in drawn] == steps


@pytest.mark.quick
def test_a_page_that_cannot_be_drawn_is_a_warning(tmp_path, at_work, monkeypatch, capsys):
    def fail(run_dir, so_far=None):
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(minillm.evaluation.report, "write_report", fail)
    train(tmp_path, at_work)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("WARNING: the report cannot be drawn (ZeroDivisionError: no ink)") == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 6


def test_other_processes_draw_nothing(tmp_path, drawn):
    Report(run_dir=tmp_path).on_train_end(SimpleNamespace(is_global_zero=False), None)
    assert drawn == []
