"""What happens at rollout boundaries: validation, checkpoints, early stops, the run's record, progress, a profile."""

from minillm.callbacks.checkpoint import Checkpoints
from minillm.callbacks.interruption import Interruption
from minillm.callbacks.median import MedianStop
from minillm.callbacks.profile import Profile
from minillm.callbacks.progress import Progress
from minillm.callbacks.record import RunRecord
from minillm.callbacks.validation import Validation

__all__ = ["Checkpoints", "Interruption", "MedianStop", "Profile", "Progress", "RunRecord", "Validation"]
