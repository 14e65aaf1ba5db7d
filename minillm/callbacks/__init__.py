"""What happens at rollout boundaries: validation, checkpoints, the run's record, the progress display."""

from minillm.callbacks.checkpoint import Checkpoints
from minillm.callbacks.progress import Progress
from minillm.callbacks.record import RunRecord
from minillm.callbacks.validation import Validation

__all__ = ["Checkpoints", "Progress", "RunRecord", "Validation"]
