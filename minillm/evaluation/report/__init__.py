"""The report of a run: one page that needs nothing else, its plots as PNG, its table as CSV."""

from minillm.evaluation.report.source import Evaluation, Model, Training, read_folder
from minillm.evaluation.report.write import write_report

__all__ = ["Evaluation", "Model", "Training", "read_folder", "write_report"]
