"""What happens at rollout boundaries: validation, checkpoints, the run's record, progress."""

from minillm.train.callbacks.checkpoint import Checkpoints
from minillm.train.callbacks.progress import Progress
from minillm.train.callbacks.record import Rows, RunRecord
from minillm.train.callbacks.report import Report
from minillm.train.callbacks.validation import Validation
from minillm.train.preemption import Interruption

__all__ = ["Checkpoints", "Interruption", "Progress", "Report", "Rows", "RunRecord", "Validation"]
