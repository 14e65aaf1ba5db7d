"""What the report makes of a run's files: the page's data, tables, plots, and files of others beside its own."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from minillm.common.errors import StorageError
from minillm.evaluation.report import read_folder, write_report
from minillm.evaluation.report.plots import COLOURS, page_svg
from minillm.evaluation.report.sections import sections_of
from minillm.evaluation.report.tables import ROWS, long_table, results
from minillm.evaluation.report.write import samples_of
from tests.evaluation_files import CHINESE, FILES, HOSTILE, MODELS, START, STUDENT, TEACHER, write_evaluation

SHOWN = HOSTILE.replace("\ud83d", "\ufffd")  # half a character can be in no file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluation") / "paper", prompts=5)


@pytest.fixture(scope="module")
def evaluation(folder):
    return read_folder(folder)


def embedded(page: str, name: str) -> str:
    return re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1]


def training_run(folder: Path) -> Path:
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\nmodel:\n  student:\n    source: <b>\n")
    (folder / "metrics.csv").write_text("progress/optimizer_step,val/rouge_l\n0,8.5\n5,11.0\n10,12.\n")
    figures = {"val/rouge_l_raw": 8.5, "val/rouge_l": 12.0, "best/rouge_l": 12.0, "best/step": 10}
    (folder / "metrics.json").write_text(json.dumps(figures))
    for stage in ("raw", "start", *(f"step_{n}" for n in range(1, 12))):
        row = {"id": "a:1", "prompt": CHINESE, "answer": f"{stage} {HOSTILE}", "teacher": "So.", "seed": 1}
        (folder / "samples" / f"{stage}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def run(tmp_path):
    return training_run(tmp_path / "mine")


def test_a_training_run_alone_has_curves_figures_and_answers_of_its_stages(run):
    page = write_report(run).read_text()
    assert page.startswith("<!doctype html>") and "Training run" in page
    assert '<th scope="row">Rouge-L</th><td>8.5</td><td>12</td><td>12</td><td>–</td>' in page
    assert (run / "report" / "plots" / "curve-Validation_Rouge-L.png").stat().st_size > 5000
    assert (run / "report" / "table.csv").read_text().splitlines()[-1] == "10.0,12.0"
    samples = json.loads(embedded(page, "samples-data"))
    names = [model["label"] for model in samples["models"]]
    assert names == ["teacher (greedy)", "raw", "start", "step 1", "step 6", "step 11"]
    assert [row["answer"] for row in samples["answers"]][:2] == ["So.", f"raw {SHOWN}"]


def test_no_text_of_a_run_is_markup_or_ends_the_script_that_holds_it(run):
    hostile = json.dumps(HOSTILE)  # YAML reads JSON's escapes
    (run / "config.yaml").write_text(f"data:\n  system: {hostile}\nmodel:\n  student:\n    source: {hostile}\n")
    page = write_report(run).read_text()
    assert "window.hacked" in page and "<img" not in page and "<!--" not in page and page.count("<script") == 3
    text = embedded(page, "samples-data")
    assert not set("<>&") & set(text) and CHINESE in text  # which escapes do not blow up


def test_colours_of_a_plot_become_variables_and_its_title_is_text():
    drawn = f'<metadata>x</metadata><g id="a" style="fill: {COLOURS[1]}"/>'
    page = page_svg(f'<?xml?><svg width="9pt" viewBox="0 0 9 9" x="1">{drawn}</svg>', 'a "b" <c>')
    label = "a &quot;b&quot; &lt;c&gt;"
    assert page == f'<svg viewBox="0 0 9 9" role="img" aria-label="{label}"><g style="fill: var(--m1)"/></svg>'


def test_files_of_others_stay_and_no_link_is_followed(run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("mine")
    report = run / "report"
    report.mkdir()
    (report / "holiday.png").write_bytes(b"\x89PNG of mine")
    (report / "index.html").symlink_to(other)
    write_report(run)
    first = {file.name for file in report.rglob("*")}
    assert {"holiday.png", "plots", "curve-Validation_Rouge-L.png", "table.csv"} <= first
    assert other.read_text() == "mine" and (report / "holiday.png").read_bytes() == b"\x89PNG of mine"
    (report / "plots" / "of_an_earlier_report.png").write_bytes(b"")
    write_report(run)
    assert {file.name for file in report.rglob("*")} == first  # its own are replaced
    for place in (report / "plots", report):
        shutil.rmtree(place)
        place.symlink_to(tmp_path)
        with pytest.raises(StorageError, match="symbolic link"):
            write_report(run)


def test_no_path_of_the_machine_is_on_a_page(run, folder, tmp_path):
    """Of a training run, and of an evaluation whose models and files have absolute paths."""
    (run / "config.yaml").write_text(f"run: {{dir: {tmp_path}/mine}}\nmodel: {{student: {tmp_path}/models/small}}\n")
    row = {"id": f"{tmp_path}/data/val.jsonl:3", "prompt": "p", "answer": "a"}
    (run / "samples" / "raw.jsonl").write_text(json.dumps(row) + "\nbroken\n")
    copy = tmp_path / "evaluation"
    shutil.copytree(folder, copy)
    for name in ("metrics.json", "answers.jsonl", "tokens.jsonl"):
        text = (copy / name).read_text().replace('"runs/', f'"{tmp_path}/runs/').replace('"data/', f'"{tmp_path}/data/')
        (copy / name).write_text(text)
    pages = [write_report(each).read_text() for each in (run, copy)]
    assert all(str(tmp_path) not in page for page in pages)
    assert "…/models/small" in pages[0] and "…/data/val.jsonl:3" in pages[0]
    answers = json.loads(embedded(pages[1], "samples-data"))["answers"]
    assert len(answers) == 180 and {each["model"] for each in answers} == {label for label, _ in MODELS.values()}


def test_tables_and_plots_go_to_wandb(run, monkeypatch):
    sent = {}

    class Logger:
        experiment = type("Run", (), {"finish": lambda self: sent.setdefault("finished", True)})()

        def log_table(self, key, columns, data):
            sent[key] = (columns, data)

        def log_image(self, key, images, caption):
            sent[key] = (images, caption)

    monkeypatch.setattr("minillm.evaluation.report.write.wandb_logger", lambda **given: sent.update(given) or Logger())
    write_report(run, wandb=True)
    image = run / "report" / "plots" / "curve-Validation_Rouge-L.png"
    assert (sent["without"], sent["run_dir"], sent["name"], sent["finished"]) == ("wandb=false", run, "mine", True)
    assert sent["report/table"] == (["progress/optimizer_step", "val/rouge_l"], [[0.0, 8.5], [5.0, 11.0], [10.0, 12.0]])
    assert sent["report/curve-Validation_Rouge-L"] == ([str(image)], ["Validation: Rouge-L"])
    numbers = sent["report/curve-Validation_Rouge-L_numbers"]
    assert numbers == (["optimizer step", "student"], [["0", "8.500"], ["5", "11.000"], ["10", "12.000"]])


def test_the_table_of_results_has_what_was_measured(evaluation):
    table = results(evaluation)
    assert table["files"] == ["dolly_test", "vicuna", "a_<b>&$_set"]
    assert [model["label"] for model in table["models"]] == ["teacher", "demo/start", "demo/minillm"]
    second = table["cells"][1][1]  # decoding, model
    assert (
        second[1]["rouge_l"].items()
        <= evaluation.metrics["answers"]["no_repeat_ngram_6"][FILES[1]][START]["figures"]["rouge_l"].items()
    )
    assert "rouge_l" not in second[2]  # a file without references
    assert not any("reverse_kl" in cells for cells in table["cells"][0][0])  # a teacher has no distance to itself
    assert "judge" not in [figure["key"] for figure in table["figures"]]
    assert table["published"] == [None, None, None]


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
    row = next(each for each in ROWS if each.name == "GPT-2 120M, MiniLLM")
    monkeypatch.setattr(
        "minillm.evaluation.report.tables.row_of", lambda model: row if model.source == STUDENT else None
    )
    return copy


def test_csv_holds_every_figure_and_leaves_nulls_empty(judged):
    evaluation = read_folder(judged)
    read = list(csv.DictReader(io.StringIO(long_table(evaluation).to_csv())))

    def only(source, file, figure, decoding="plain"):
        wanted = (decoding, source, file, figure)
        (row,) = (each for each in read if tuple(each[k] for k in ("decoding", "source", "file", "figure")) == wanted)
        return [row[key] and float(row[key]) for key in ("mean", "low", "high", "n")]

    metrics = evaluation.metrics
    assert only(STUDENT, FILES[2], "distinct_4")[1:] == ["", "", 5]
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


@pytest.mark.slow
def test_sections_name_the_decoding_and_have_the_first_token_and_the_judges_counts(judged):
    made = {section.key: section for section in sections_of(read_folder(judged))}
    for key, names in (
        ("length", ["Rouge-L by length of the reference", "Exact match by length of the reference"]),
        ("diversity", ["Distinct-n"]),
    ):
        for name in names:
            shown = {
                decoding: made[key].groups[f"{name}, decoding {decoding}"]
                for decoding in ("plain", "no_repeat_ngram_6")
            }
            rows = [panels[0].numbers.rows for panels in shown.values()]
            assert len(shown["plain"]) >= 2 and rows[0] and rows[0] != rows[1]
            assert all(decoding in panel.title for decoding, panels in shown.items() for panel in panels)
    columns, rows = made["exposure"].table.columns, made["exposure"].table.rows
    assert columns[2] == "first token’s KL, nats" and rows[0][:3] == ["dolly_test", "demo/start", "0.900"]
    assert rows[0][3].endswith("] at 35") and rows[1][1:] == ["demo/minillm", "0.900", "–"]
    assert made["judge"].table.rows[0] == ["plain", "dolly_test", "demo/start", "10", "1,007", "2", "1", "5"]
    assert made["calibration"].table.rows[0] == ["sst2", "teacher", "0.090 [0.100, 0.300]", "0.760 [0.500, 0.800]", "3"]
    page = write_report(judged).read_text()
    assert page.count("1,007") == 3 and '<a href="#judge">' in page


def test_samples_say_each_prompt_once(evaluation):
    samples = samples_of(evaluation)
    assert len(samples["answers"]) == 3 * 3 * 2 * 2 * 5 and len(samples["prompts"]) == 3 * 5
    row = next(row for row in evaluation.answers if row["model"] == STUDENT and row["answer"] == SHOWN)
    label = MODELS[STUDENT][0]
    packed = next(row for row in samples["answers"] if row["model"] == label and row["answer"] == SHOWN)
    names = {"model": label, "file": evaluation.files[row["file"]]}
    assert packed.items() <= (row | names).items() and "prompt" not in packed
    assert (label, row["id"]) in {(each["model"], each["id"]) for each in samples["tokens"]}


def test_a_page_has_the_first_prompts_of_each_file_with_all_their_answers(tmp_path, monkeypatch):
    folder = write_evaluation(tmp_path / "run")
    every = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    monkeypatch.setattr("minillm.evaluation.report.source.SHOWN", 3)
    found = read_folder(folder)
    firsts = {file: list(dict.fromkeys(row["id"] for row in every if row["file"] == file))[:3] for file in FILES}
    wanted = [row for row in every if row["id"] in firsts[row["file"]]]
    assert [row["id"] for row in found.answers] == [row["id"] for row in wanted]
    assert found.n_answers == len(every) == 4 * len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "prompts"), [(75 * 1200, 2), (1, 1)])
def test_a_page_has_no_more_answers_than_it_can_carry_and_says_so(folder, monkeypatch, limit, prompts):
    monkeypatch.setattr("minillm.evaluation.report.source.MOST_CHARACTERS", limit)
    found = read_folder(folder)
    of_first = 3 * 3 * 2 * 2  # models, files, decodings, seeds
    assert found.shown == prompts and len(found.answers) == prompts * of_first
    assert {row["file"] for row in found.answers} == {*FILES}
    said = f"The first {prompts} prompts of each data set, {prompts * of_first} of 180 answers"
    assert said in write_report(folder).read_text()
