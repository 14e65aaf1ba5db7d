"""What a run needs, from tensors without data: memory of a device, what fits, how long it takes."""

from minillm.planning.case import Case
from minillm.planning.memory import Device, Memory, fake_device, largest, measure
from minillm.planning.networks import Blueprint, Sizes, configs
from minillm.planning.speed import Rates, Speed, speed

__all__ = [
    "Blueprint",
    "Case",
    "Device",
    "Memory",
    "Rates",
    "Sizes",
    "Speed",
    "configs",
    "fake_device",
    "largest",
    "measure",
    "speed",
]
