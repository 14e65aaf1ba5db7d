"""The public functions. `train.py` and `evaluate.py` go through the same code; there Hydra makes the objects that are
arguments here."""

from minillm.api.inputs import Run, Student
from minillm.api.measuring import evaluate, generate
from minillm.api.rollouts import backward, prepare, rollouts
from minillm.api.training import distill, finetune, load_pair

__all__ = ["Run", "Student", "backward", "distill", "evaluate", "finetune", "generate", "load_pair", "prepare",
           "rollouts"]  # fmt: skip
