"""The layout of the paper's Table 1, for every figure and decoding: as data of the page and as LaTeX."""

from __future__ import annotations

from minillm.evaluation.metrics.figures import Figure
from minillm.evaluation.report.published import SETS, row_of, set_of
from minillm.evaluation.report.source import SPREAD, Evaluation

# Counts of a judge, by their names in metrics.json.
JUDGED = {
    "items": "answers", "rated": "rated", "malformed": "malformed", "failed": "failed",
    "malformed_replies": "replies without scores",
}  # fmt: skip


def spread_of(evaluation: Evaluation, decoding: str, file: str, source: str, figure: str) -> dict | None:
    """One cell, or None where it was not measured. The loss on references is the same in every decoding."""
    if figure == "reference_loss":
        return (evaluation.metrics.get("reference_loss") or {}).get(file, {}).get(source)
    entry = evaluation.metrics["answers"][decoding].get(file, {}).get(source, {})
    return entry.get("figures", {}).get(figure)


def last_excess(exposure: dict) -> tuple[int, float, float | None, float | None] | None:
    """ExAccErr at the last length that has a value: (length, value, low, high); None where no length has one."""
    lengths = [at for at, value in enumerate(exposure["excess"]) if value is not None]
    return (lengths[-1] + 1, *(exposure[key][lengths[-1]] for key in ("excess", "low", "high"))) if lengths else None


def judge_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]] | None:
    """What became of the answers given to a judge: columns and rows by decoding and model, all data sets together."""
    rows = []
    for decoding, files in (evaluation.metrics.get("judge") or {}).items():
        for model in evaluation.models:
            found = [by_model[model.source] for by_model in files.values() if model.source in by_model]
            if found:
                totals = [sum(counts.get(name) or 0 for counts in found) for name in JUDGED]
                rows.append([decoding, model.label, *(f"{total:,}" for total in totals)])
    return (["decoding", "model", *JUDGED.values()], rows) if rows else None


def table_of(evaluation: Evaluation) -> dict:
    """For the page: cells[decoding][figure][model][file] = [mean, deviation, low, high, n] or None, and
    best[decoding][figure][file] = numbers of the best students; the paper's rows where a model is comparable; figures
    that nobody has are left out."""
    cells: dict[str, dict] = {}
    models = [{"label": model.label, "role": model.role} for model in evaluation.models]
    for decoding in evaluation.decodings:
        cells[decoding] = {}
        for figure in evaluation.figures.values():
            rows = [
                [spread_of(evaluation, decoding, file, model.source, figure.key) for file in evaluation.files]
                for model in evaluation.models
            ]
            if any(each is not None for row in rows for each in row):
                cells[decoding][figure.key] = [
                    [None if each is None else [each[key] for key in SPREAD] for each in row] for row in rows
                ]
    there = {key for figures in cells.values() for key in figures}
    sets = [set_of(file) for file in evaluation.files]
    published = []
    for model in evaluation.models:
        row = row_of(model)
        values = row and dict(zip(SETS, row.values, strict=True))
        published.append(
            row and {"name": f"{row.family} {row.size}, {row.method}", "values": [values.get(name) for name in sets]}
        )
    return {
        "figures": [figure.facts() for figure in evaluation.figures.values() if figure.key in there],
        "decodings": list(evaluation.decodings),
        "files": list(evaluation.files.values()),
        "models": models,
        "cells": cells,
        "best": {
            decoding: {
                key: [
                    sorted(best_of(rows, models, column, evaluation.figures[key]))
                    for column in range(len(evaluation.files))
                ]
                for key, rows in figures.items()
            }
            for decoding, figures in cells.items()
        },
        "published": published,
    }


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{char: rf"\{char}" for char in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is; line ends and tabs as a space."""
    return " ".join("".join(_LATEX.get(char, char) for char in text).split())


def to_latex(evaluation: Evaluation) -> str:
    """A booktabs table a decoding: Rouge-L or, where there is none, the first figure; the best student is bold, and
    the paper's values stand below a model that they compare with. Then the counts of a judge."""
    blocks = ["% wants \\usepackage{booktabs}"]
    table = table_of(evaluation)
    for decoding, figures in table["cells"].items():
        if not figures:
            continue
        figure = evaluation.figures[next(iter(figures))]
        rows, n_files = figures[figure.key], len(table["files"])
        best = table["best"][decoding][figure.key]
        lines = [
            rf"% {figure.key}, decoding {decoding}: mean over seeds, deviation, 95\% interval over prompts",
            rf"\begin{{tabular}}{{l{'c' * n_files}}}",
            r"\toprule",
            " & ".join(["Model", *map(latex_escape, table["files"])]) + r" \\",
            r"\midrule",
        ]
        for number, (model, row) in enumerate(zip(table["models"], rows, strict=True)):
            texts = [_latex_cell(cell, figure.digits, number in best[column]) for column, cell in enumerate(row)]
            lines.append(" & ".join([latex_escape(model["label"]), *texts]) + r" \\")
            paper = table["published"][number]
            if paper and figure.key == "rouge_l":
                values = ["--" if value is None else f"{value:.1f}" for value in paper["values"]]
                lines.append(" & ".join([rf"\quad published: {latex_escape(paper['name'])}", *values]) + r" \\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    if judged := judge_table(evaluation):
        columns, rows = judged
        lines = [" & ".join(map(latex_escape, row)) + r" \\" for row in (columns, *rows)]
        begin = rf"\begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}"
        lines = ["% answers given to the judge, all data sets", begin, r"\toprule", lines[0], r"\midrule", *lines[1:]]
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(blocks) + "\n"


def best_of(rows: list, models: list[dict], column: int, figure: Figure) -> set[int]:
    """The students with the best mean as it is shown, where one way is better and not all have the same."""
    values = {
        number: round(figure.better * row[column][0], figure.digits)
        for number, (model, row) in enumerate(zip(models, rows, strict=True))
        if model["role"] != "teacher" and row[column] and row[column][0] is not None
    }
    best = {number for number, value in values.items() if value == max(values.values())}
    return best if len(best) < len(values) else set()


def _latex_cell(cell: list | None, digits: int, best: bool) -> str:
    if cell is None or cell[0] is None:
        return "--"
    mean, deviation, low, high, _ = cell
    text = rf"\textbf{{{mean:.{digits}f}}}" if best else f"{mean:.{digits}f}"
    if deviation is not None:
        text += rf" $\pm$ {deviation:.{digits}f}"
    return text if low is None else rf"{text} [{low:.{digits}f}, {high:.{digits}f}]"
