"""docs/tutorial.ipynb: all its cells run with tiny models; the page is made of it; its outputs are of the real ones."""

import re
from pathlib import Path

import nbformat
import pytest

from docs.make_tutorial import NOTEBOOK, PAGE, PICTURE, execute, page

ROOT = Path(__file__).parents[2]
TINY = """
teacher, student = "{world}/teacher", "{world}/student"
prompts, held_out = "{world}/train.jsonl", "{world}/val.jsonl"
tokens, start_steps, steps, answers, n_held_out = 5, 1, 2, 4, 3
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def texts(cell) -> str:
    return "".join(output.get("text") or output["data"].get("text/plain", "") for output in cell.get("outputs", []))


@pytest.mark.quick
def test_the_page_is_that_of_the_notebook(notebook):
    assert (PAGE.read_text(), PICTURE.read_bytes()) == page(notebook), "run python -m docs.make_tutorial"


@pytest.mark.quick
def test_the_outputs_are_of_one_whole_run_and_name_no_path_of_a_machine(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)\b", NOTEBOOK.read_text())


@pytest.mark.quick
def test_each_step_says_what_one_sees(notebook):
    steps = [cell.source for cell in notebook.cells if re.match(r"## \d", cell.source)]
    assert (
        len(steps) == 11
        and [step for step in steps[1:] if "**You\nsee**" not in step and "**You see**" not in step] == []
    )


def test_all_cells_run_in_order(notebook, world, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = TINY.format(world=world)
    execute(notebook, tmp_path)
    shown = "".join(map(texts, notebook.cells))
    assert "the same logits: True" in shown and shown.count("nats a token, 95% interval") == 2 and "'loss':" in shown
    assert page(notebook)[1].startswith(b"\x89PNG")
    assert {"before", "student"} == {each.name for each in (tmp_path / "runs" / "tutorial").iterdir()}
