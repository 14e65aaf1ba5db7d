"""Write docs/tutorial.md and its picture from docs/tutorial.ipynb: `python -m docs.make_tutorial`.

With --run the notebook is run first, with the models that it names, and keeps its outputs.
"""

import base64
import re
import sys
import tempfile
import time
from pathlib import Path
from textwrap import fill

import nbformat

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"
PAGE, PICTURE = NOTEBOOK.with_suffix(".md"), NOTEBOOK.with_suffix(".png")
NOTE = "<!-- Made by `python -m docs.make_tutorial` from tutorial.ipynb. -->\n"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in a new kernel, in that directory; see `clean` for the outputs that stay."""
    from nbclient import NotebookClient

    began = time.monotonic()

    def show(cell, cell_index, execute_reply):
        print(f"{time.monotonic() - began:5.0f} s  {cell.source.splitlines()[0]}", flush=True)

    options = dict(timeout=1800, kernel_name="python3", record_timing=False, on_cell_executed=show)
    NotebookClient(notebook, **options).execute(cwd=str(folder))
    clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep what a reader needs of the outputs: not stderr, not the HTML of tables that are there as text too, and in
    the texts no colours, no names of temporary directories and no warning that ipywidgets are missing."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr" and "ipywidgets" not in str(each)]
        for output in cell.outputs:
            place, key = (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
            place.pop("text/html", None)
            text = re.sub(r"\x1b\[[\d;]*m", "", place.get(key, "")).replace(f"{tempfile.gettempdir()}/", "")
            place[key] = re.sub(r"[ \t]+$", "", re.sub(r"\bminillm-\w{8}\b", "minillm-xxxxxxxx", text), flags=re.M)


def page(notebook: nbformat.NotebookNode) -> tuple[str, bytes]:
    """The notebook as Markdown, and the picture in it."""
    parts, picture = [NOTE], b""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(f"{cell.source}\n")
            continue
        parts.append(f"```python\n{cell.source}\n```\n")
        found = [output.get("data", {"text/plain": output.get("text", "")}) for output in cell.outputs]
        text = "".join(data["text/plain"] for data in found if "image/png" not in data)
        if text.strip():
            lines = [
                fill(line, 100, subsequent_indent="      ") if len(line) > 120 else line for line in text.split("\n")
            ]
            parts.append("```\n{}\n```\n".format("\n".join(lines).strip("\n")))
        for data in found:
            if "image/png" in data:
                picture = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell draws]({PICTURE.name})\n")
    return "\n".join(parts), picture


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if "--run" in sys.argv:
        execute(notebook, NOTEBOOK.parents[1])
        nbformat.write(notebook, NOTEBOOK)
    text, picture = page(notebook)
    PAGE.write_text(text)
    PICTURE.write_bytes(picture)
