"""What happens at rollout boundaries: validation, checkpoints, early stops, the run's record, progress, a profile."""

from minillm.train.callbacks.checkpoint import Checkpoints
from minillm.train.callbacks.interruption import Interruption
from minillm.train.callbacks.median import MedianStop
from minillm.train.callbacks.profile import Profile
from minillm.train.callbacks.progress import Progress
from minillm.train.callbacks.record import RunRecord
from minillm.train.callbacks.validation import Validation

__all__ = ["Checkpoints", "Interruption", "MedianStop", "Profile", "Progress", "RunRecord", "Validation"]
