"""What the report makes of files: tables, escapes, samples, sections."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from minillm.evaluation.report import read_folder, write_report
from minillm.evaluation.report.page import embedded, page_of
from minillm.evaluation.report.plots import COLOURS, page_svg
from minillm.evaluation.report.published import ROWS
from minillm.evaluation.report.rows import table_rows, to_csv
from minillm.evaluation.report.samples import samples_of
from minillm.evaluation.report.sections import sections_of
from minillm.evaluation.report.source import _run_of
from minillm.evaluation.report.tables import latex_escape, table_of, to_latex
from minillm.evaluation.report.write import intro
from tests.evaluation_files import CHINESE, FILES, HOSTILE, START, STUDENT, TEACHER, write_evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluation") / "paper", prompts=5)


@pytest.fixture(scope="module")
def evaluation(folder):
    return read_folder(folder)


def test_embedded_json_cannot_end_its_script_and_reads_back():
    value = {"text": f"{HOSTILE} <!-- {CHINESE} \u2029", "none": None}
    text = embedded(value)
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode()  # half characters are gone
    assert json.loads(text)["text"] == value["text"].replace("\ud83d", "\ufffd")
    assert CHINESE in text  # and is not blown up by escapes
    with pytest.raises(ValueError):
        embedded(float("nan"))


def test_names_and_settings_are_text_in_the_page():
    page = page_of(
        title=HOSTILE, kind="Evaluation", facts={"Teacher": HOSTILE}, legend=[], panels=[], sections=[], data={},
        published=None, settings_text=HOSTILE, intro="", coloured=False, samples={"answers": [HOSTILE]},
    )  # fmt: skip
    assert "window.hacked" in page and "<img" not in page and page.count("<script") == 3


def test_colours_of_a_plot_become_variables_and_its_title_is_text():
    drawn = f'<metadata>x</metadata><g id="a" style="fill: {COLOURS[1]}"/>'
    page = page_svg(f'<?xml?><svg width="9pt" viewBox="0 0 9 9" x="1">{drawn}</svg>', 'a "b" <c>')
    assert page == (
        '<svg viewBox="0 0 9 9" role="img" aria-label="a &quot;b&quot; &lt;c>"><g style="fill: var(--m1)"/></svg>'
    )


def test_a_cell_of_the_table_is_empty_where_nothing_was_measured(evaluation):
    table = table_of(evaluation)
    assert table["files"] == ["dolly_test", "vicuna", "a_<b>&$_set"]
    assert [model["label"] for model in table["models"]] == ["teacher", "demo/start", "demo/minillm"]
    entry = evaluation.metrics["answers"]["no_repeat_ngram_6"][FILES[1]][START]["figures"]["rouge_l"]
    expected = [entry[key] for key in ("mean", "deviation", "low", "high", "n")]
    assert table["cells"]["no_repeat_ngram_6"]["rouge_l"][1][1:] == [expected, None]
    assert table["cells"]["plain"]["reverse_kl"][0] == [None, None, None]  # a teacher has no distance to itself
    assert "judge" not in table["cells"]["plain"]
    assert table["best"]["plain"]["rouge_l"] == [[2], [2], []] and table["best"]["plain"]["reverse_kl"] == [[2]] * 3
    assert table["best"]["plain"]["length"] == [[]] * 3  # neither way is better
    assert table["published"] == [None, None, None]


def test_csv_holds_every_figure_and_leaves_nulls_empty(evaluation):
    columns, rows = table_rows(evaluation)
    read = list(csv.DictReader(io.StringIO(to_csv(columns, rows))))
    assert len(read) == len(rows)
    place = ("plain", STUDENT, FILES[2], "distinct_4")
    keys = ("decoding", "source", "file", "figure")
    (row,) = (each for each in read if tuple(each[key] for key in keys) == place)
    assert row["low"] == row["high"] == "" and float(row["mean"]) > 0 and row["n"] == "5"


JUDGED = {"items": 10, "rated": 1007, "malformed": 2, "failed": 1, "malformed_replies": 5}


@pytest.fixture
def judged(folder, tmp_path, monkeypatch):
    """With a judge's counts, and a student that has the paper's row beside it."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["judge"] = {"plain": {FILES[0]: {START: JUDGED}, FILES[1]: {START: JUDGED, STUDENT: JUDGED}}}
    metrics["exposure"][FILES[0]][STUDENT]["excess"] = [None] * 40
    metrics["answers"]["plain"][FILES[0]][START]["by_length"]["0-5"]["exact_match"]["mean"] = 1.0
    copy = tmp_path / "paper"
    shutil.copytree(folder, copy)
    (copy / "metrics.json").write_text(json.dumps(metrics))
    row = next(each for each in ROWS if (each.size, each.method) == ("120M", "MiniLLM"))
    for module in ("tables", "rows"):
        monkeypatch.setattr(
            f"minillm.evaluation.report.{module}.row_of", lambda model: row if model.source == STUDENT else None
        )
    return read_folder(copy)


def test_csv_holds_calibration_lengths_exposure_judge_and_published_values(judged):
    columns, rows = table_rows(judged)
    read = list(csv.DictReader(io.StringIO(to_csv(columns, rows))))

    def only(source, file, figure, decoding="plain"):
        wanted = (decoding, source, file, figure)
        (row,) = (each for each in read if tuple(each[k] for k in ("decoding", "source", "file", "figure")) == wanted)
        return [row[key] and float(row[key]) for key in ("mean", "low", "high", "n")]

    metrics = judged.metrics
    cell = metrics["answers"]["no_repeat_ngram_6"][FILES[0]][START]["by_length"]["6-10"]["exact_match"]
    found = only(START, FILES[0], "exact_match@6-10", "no_repeat_ngram_6")
    assert found == [cell[key] for key in ("mean", "low", "high", "n")]
    n = metrics["calibration"]["boolq"][TEACHER]["n"]
    assert only(TEACHER, "boolq", "ece", "") == pytest.approx([0.09, 0.1, 0.3, n])
    assert only(TEACHER, "boolq", "accuracy", "")[1:3] == [0.5, 0.8]
    curve = metrics["exposure"][FILES[0]][START]
    assert only(START, FILES[0], "exposure_bias@35", "")[:3] == [curve[k][34] for k in ("excess", "low", "high")]
    assert only(STUDENT, FILES[0], "first_token_kl", "") == [0.9, "", "", ""]
    assert not [row for row in read if row["source"] == STUDENT and row["figure"].startswith("exposure")]
    assert only(STUDENT, FILES[1], "judge_failed")[0] == 1 and only(START, FILES[0], "judge_rated")[0] == 1007
    assert only(STUDENT, FILES[0], "rouge_l", "published") == [24.6, "", "", ""]
    assert only(STUDENT, FILES[1], "rouge_l", "published")[0] == 16.9
    assert not [row for row in read if row["decoding"] == "published" and row["file"] == FILES[2]]


def test_latex_has_published_values_below_their_model_and_the_judges_counts(judged):
    text = [line for line in to_latex(judged).splitlines() if line.endswith(r"\\")]
    below = text.index(r"\quad published: GPT-2 120M, MiniLLM & 24.6 & 16.9 & -- \\")
    assert text[below - 1].startswith("demo/minillm") and below == 4
    assert text[-3:] == [
        r"decoding & model & answers & rated & malformed & failed & replies without scores \\",
        r"plain & demo/start & 20 & 2,014 & 4 & 2 & 10 \\",
        r"plain & demo/minillm & 10 & 1,007 & 2 & 1 & 5 \\",
    ]


@pytest.mark.slow
def test_sections_name_the_decoding_and_have_the_first_token_and_the_judges_counts(judged, tmp_path):
    made = {section.key: section for section in sections_of(judged, tmp_path)}
    for key, names in (
        ("length", ["Rouge-L by length of the reference", "Exact match by length of the reference"]),
        ("diversity", ["Distinct-n"]),
    ):
        for name in names:
            shown = {
                decoding: made[key].groups[f"{name}, decoding {decoding}"]
                for decoding in ("plain", "no_repeat_ngram_6")
            }
            rows = [panels[0].rows for panels in shown.values()]
            assert len(shown["plain"]) >= 2 and rows[0] and rows[0] != rows[1]
            assert all(decoding in panel.title for decoding, panels in shown.items() for panel in panels)
    columns, rows = made["exposure"].table
    assert columns[2] == "first token’s KL, nats" and rows[0][:3] == ["dolly_test", "demo/start", "0.900"]
    assert rows[0][5] == "35" and rows[1][1:] == ["demo/minillm", "0.900", "–", "–", "–"]
    assert made["judge"].table[1][0] == ["plain", "demo/start", "20", "2,014", "4", "2", "10"]
    page = write_report(judged.folder).read_text()
    assert page.count("2,014") == 1 and '<a href="#judge">' in page


def test_latex_is_escaped_and_sets_the_best_student_in_bold(evaluation):
    assert latex_escape("50% of $x_1$ & \\co {a}~^#\n<b>") == (
        r"50\% of \$x\_1\$ \& \textbackslash{}co \{a\}\textasciitilde{}\textasciicircum{}\# \textless{}b\textgreater{}"
    )
    text = to_latex(evaluation)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert rows[0] == r"Model & dolly\_test & vicuna & a\_\textless{}b\textgreater{}\&\$\_set \\"
    assert [row.count(r"\textbf") for row in rows[:4]] == [0, 0, 0, 2]  # not the teacher, though it is better
    assert rows[3].endswith(r"& -- \\") and r"$\pm$" in rows[3]


def test_samples_say_each_prompt_once_and_kl_a_token(evaluation):
    samples = samples_of(evaluation)
    assert len(samples["answers"]) == 3 * 3 * 2 * 2 * 5 and len(samples["prompts"]) == 3 * 5
    row = next(row for row in evaluation.answers if row["model"] == STUDENT and row["answer"] == HOSTILE)
    packed = next(row for row in samples["answers"] if row[0] == 2 and row[4] == HOSTILE)
    assert packed[7] == round(row["reverse_kl"] / row["n_tokens"], 3)
    assert samples["prompts"][packed[1]][1] == row["id"]
    pieces, differences, log_q = samples["tokens"][packed[10]]
    of = next(each for each in evaluation.tokens if each["model"] == STUDENT and each["id"] == row["id"])
    assert pieces == of["tokens"] and log_q[0] == round(of["log_q"][0], 3)
    assert differences[0] == round(of["log_p"][0] - of["log_q"][0], 3)
    assert all(row[10] == -1 for row in samples["answers"] if row[0] == 0 or row[3] == 1)


def test_a_page_has_the_first_prompts_of_each_file_with_all_their_answers(tmp_path, monkeypatch):
    folder = write_evaluation(tmp_path / "run")
    every = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    monkeypatch.setattr("minillm.evaluation.report.source.SHOWN", 3)
    found = read_folder(folder)
    firsts = {file: list(dict.fromkeys(row["id"] for row in every if row["file"] == file))[:3] for file in FILES}
    wanted = [row for row in every if row["id"] in firsts[row["file"]]]
    assert found.answers == wanted and found.n_answers == len(every) == 4 * len(wanted)


@pytest.mark.parametrize(("limit", "value"), [("MOST_ANSWERS", 75), ("MOST_CHARACTERS", 12_000)])
def test_a_page_has_no_more_answers_than_it_can_carry_and_says_so(folder, monkeypatch, limit, value):
    monkeypatch.setattr(f"minillm.evaluation.report.source.{limit}", value)
    found = read_folder(folder)
    of_first = 3 * 3 * 2 * 2  # models, files, decodings, seeds
    assert found.shown == 2 and len(found.answers) == 2 * of_first
    assert {row["file"] for row in found.answers} == {*FILES}
    monkeypatch.setattr(f"minillm.evaluation.report.source.{limit}", 1)
    found = read_folder(folder)
    assert found.shown == 1 and len(found.answers) == of_first
    assert "The first 1 prompts of each data set, 36 of 180 answers" in intro(found)


def training_run(folder: Path) -> Path:
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\nmodel:\n  student:\n    source: <b>\n")
    (folder / "metrics.csv").write_text("progress/optimizer_step,val/rouge_l\n0,8.5\n5,11.0\n10,12.\n")
    figures = {"val/rouge_l_raw": 8.5, "val/rouge_l": 12.0, "best/rouge_l": 12.0, "best/step": 10}
    (folder / "metrics.json").write_text(json.dumps(figures))
    for stage in ("raw", "start", *(f"step_{n}" for n in range(1, 12))):
        row = {"id": "a:1", "prompt": "Why?", "answer": f"{stage} {HOSTILE}", "teacher": "So.", "seed": 1}
        (folder / "samples" / f"{stage}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_training_run_alone_has_curves_figures_and_answers_of_its_stages(tmp_path):
    folder = training_run(tmp_path / "mine")
    page = write_report(folder).read_text()
    assert page.startswith("<!doctype html>") and "Training run" in page and "<b>" not in page
    assert (folder / "report" / "curve-Validation_Rouge-L.png").stat().st_size > 5000
    assert (folder / "report" / "table.csv").read_text().splitlines()[-1] == "10.0,12.0"
    samples = samples_of(read_folder(folder))
    names = [model["label"] for model in samples["models"]]
    assert names == ["teacher (greedy)", "raw", "start", "step 1", "step 6", "step 11"]
    assert [row[0] for row in samples["answers"]] == [0, 1, 2, 3, 4, 5]


def test_tables_and_plots_go_to_wandb(tmp_path, monkeypatch):
    sent = {}

    class Logger:
        experiment = type("Run", (), {"finish": lambda self: sent.setdefault("finished", True)})()

        def log_table(self, key, columns, data):
            sent[key] = (columns, data)

        def log_image(self, key, images, caption):
            sent[key] = (images, caption)

    monkeypatch.setattr("minillm.evaluation.report.write.wandb_logger", lambda **given: sent.update(given) or Logger())
    folder = training_run(tmp_path / "mine")
    write_report(folder, wandb=True)
    image = folder / "report" / "curve-Validation_Rouge-L.png"
    assert (
        sent["without"] == "wandb=false" and sent["run_dir"] == folder and sent["name"] == "mine" and sent["finished"]
    )
    assert sent["report/table"] == (["progress/optimizer_step", "val/rouge_l"], [[0.0, 8.5], [5.0, 11.0], [10.0, 12.0]])
    assert sent["report/curve-Validation_Rouge-L"] == ([str(image)], ["Validation: Rouge-L"])
    numbers = sent["report/curve-Validation_Rouge-L_numbers"]
    assert numbers == (["step", "mine"], [["0", "8.500"], ["5", "11.000"], ["10", "12.000"]])


def test_learning_curves_are_found_where_the_models_lie(tmp_path):
    folder = write_evaluation(tmp_path / "runs" / "test", prompts=1)
    made = (tmp_path / STUDENT).parent
    made.mkdir(parents=True)
    (made / "metrics.csv").write_text("progress/optimizer_step,val/loss\n0,3\n")
    runs = read_folder(folder).runs
    assert list(runs) == [STUDENT] and runs[STUDENT].curve("val/loss") == [(0.0, 3.0)]


def test_the_run_of_a_model_below_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.csv").write_text("progress/optimizer_step,val/loss\n0,3\n")
    assert _run_of(tmp_path / "runs" / "test", "~/mine/student").rows
