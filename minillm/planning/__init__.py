"""What a run needs, by formulas from the architecture: memory of a device, what fits, how long it takes."""

from minillm.planning.memory import Case, Memory, largest_microbatch, largest_rollout, measure
from minillm.planning.networks import Sizes, configs
from minillm.planning.speed import Rates, Speed, speed

__all__ = ["Case", "Memory", "Rates", "Sizes", "Speed", "configs", "largest_microbatch", "largest_rollout", "measure",
           "speed"]  # fmt: skip
