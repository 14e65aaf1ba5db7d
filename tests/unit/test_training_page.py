"""The page of a training run: which curves are plots, which steps are counted, what Rouge-L is against."""

import json
import re

import pytest

from minillm.evaluation.report import write_report
from tests.unit.test_report import embedded, training_run


@pytest.fixture
def run(tmp_path):
    return training_run(tmp_path / "mine")


def test_plots_of_one_name_get_numbers(run):
    """Names of files are of few characters: those of two figures of one's own may be left with none."""
    rows = ["progress/optimizer_step,val/长度,val/质量", "0,1,2", "5,3,4"]
    (run / "metrics.csv").write_text("\n".join([*rows, ""]))
    page = write_report(run).read_text()
    assert {each.name for each in (run / "report" / "plots").iterdir()} == {
        "curve-Validation_.png", "curve-Validation_-2.png"
    }  # fmt: skip
    assert page.count("<figure") == page.count('id="plot-curve-Validation_') == 2


def test_a_curve_that_never_changes_is_a_line_of_text(run):
    columns = ["progress/optimizer_step", "val/rouge_l", "val/length", "val/entropy", "val/teacher_entropy"]
    rows = [columns, ["0", "8.5", "6", "3.25", "2"], ["5", "9.5", "6", "3.25", "2"], ["9", "9", "", "", ""]]
    (run / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    page = write_report(run).read_text()
    lines = re.findall("<li>(Validation: .*?)</li>", page)
    assert lines == [
        "Validation: Length, tokens: constant at 6",
        "Validation: entropy, nats a token (student): constant at 3.25",
        "Validation: entropy, nats a token (teacher): constant at 2",
    ]
    assert [each.stem for each in (run / "report" / "plots").iterdir()] == ["curve-Validation_Rouge-L"]


def test_steps_count_the_same_everywhere_on_the_page(run):
    """metrics.csv counts the supervised start too; best/step, the screen and the names of samples do not."""
    (run / "config.yaml").write_text("start: {steps: 4}\nregime: {max_steps: 6}\n")
    (run / "metrics.json").write_text(json.dumps({"best/step": 1, "steps": 6}))
    page = write_report(run).read_text()
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert (facts["Optimizer steps"], facts["Best step"]) == ("6 of 6, after 4 supervised", "1")
    points = json.loads(embedded(page, "data"))["plots"]["curve-Validation_Rouge-L"]["series"][0]["points"]
    assert points == [[-4, 8.5], [1, 11.0], [6, 12.0]]


@pytest.mark.parametrize(
    ("references", "said"), [(["a"], "the references"), ([], "the teacher’s greedy answers"), (None, None)]
)
def test_the_page_says_what_rouge_l_is_against(run, references, said):
    for file in (run / "samples").iterdir():
        row = json.loads(file.read_text())
        file.write_text(json.dumps(row | ({} if references is None else {"references": references})) + "\n")
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", write_report(run).read_text()))
    assert facts.get("Rouge-L is against") == said
